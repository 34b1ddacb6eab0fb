"""Every ``auto`` of a job, resolved by a documented rule and shown in the job."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from peft_engine.bases.base import Base
from peft_engine.configs.job import JobSpec
from peft_engine.configs.training import TrainingConfig
from peft_engine.errors import ConfigError
from peft_engine.parts.batching import Example
from peft_engine.parts.texts import TEXT_METRICS
from peft_engine.tasks.protocol import HeadTask, Task
from peft_engine.training.packing import resolve_packing
from peft_engine.training.recipes import FEW_ROWS, RECIPES, Recipe, Recipes, recipes_for
from peft_engine.training.selection import LOWER_IS_BETTER, Keep

MAX_EVALUATIONS = 20
"""Upper bound of evaluations in a run when ``eval_every_steps`` is ``auto``."""

MIN_SELECTION_ROWS = 16
"""Fewest validation rows that choose a step. One row of 16 is already 6 points of accuracy, and the
best of several evaluations on fewer is mostly the luckiest."""

CONSTANT_PATIENCE = 3
"""Evaluations without improvement that end a run at a constant rate; they can dip for two before
they gain."""

MIN_FEW_STEPS = 20
"""Fewest steps with few rows: a recipe's passes over 8 rows would be 4 steps, of which none is at a
rate that the schedule means."""
GENTLEST = 0.15
"""Least share of a recipe's rates with few rows: 3e-4 in place of 2e-3 for LoRA on classification,
which beside 1e-3 lost less on subsets of 8 rows; see benchmarks/LOG.md."""
MIN_FEW_BATCH_ROWS = 4

VALIDATION_GENERATE_ROWS = 32
"""Validation rows that are answered at each evaluation where a metric of texts decides: one batch,
at most 256 tokens each, so that an evaluation costs some hundred forwards of one token."""


@dataclass(frozen=True)
class Resolved:
    """A job's training settings without any ``auto``.

    Attributes:
        method: The methods with the sizes that they have on this base.
        learning_rate: Peak rate of the delta; in a combination, of its first method.
        method_learning_rates: Peak rate of each method by its name.
        head_learning_rate: Peak rate of the head.
        weight_decay: Decay of matrices.
        batch_size: Rows of one forward.
        gradient_accumulation: Forwards of one step.
        epochs: Passes over the training rows.
        steps_per_epoch: Optimizer steps of one epoch.
        total_steps: Optimizer steps of the run.
        eval_every_steps: Steps between evaluations.
        max_length: Longest row in tokens.
        metric: Metric that decides which step is best.
        patience: Evaluations without improvement that end the run; None: nothing does.
        precision: Arithmetic of the base.
        validation_generate_rows: Validation rows that are answered in full at each evaluation.
        keep: Which step is published.
        gradient_checkpointing: Whether layers are computed again in the backward pass.
        reuse_frozen_layers: Whether activations below the lowest trained layer are kept.
        reused_bytes: What they take once every row has been seen.
        packing: Whether the rows of a batch share one row of the forward.
    """

    method: tuple[dict[str, Any], ...]
    learning_rate: float
    method_learning_rates: dict[str, float]
    head_learning_rate: float
    weight_decay: float
    batch_size: int
    gradient_accumulation: int
    epochs: float
    steps_per_epoch: int
    total_steps: int
    eval_every_steps: int
    max_length: int
    metric: str
    patience: int | None
    precision: str
    validation_generate_rows: int
    keep: Keep
    gradient_checkpointing: bool = False
    reuse_frozen_layers: bool = False
    reused_bytes: int = 0
    packing: bool = False

    def as_json(self) -> dict[str, Any]:
        """The settings for the job.

        Returns:
            JSON values by name.
        """
        return asdict(self)


def resolve_max_length(spec: JobSpec, base: Base, task: Task) -> int:
    """Longest row, before lengths are known.

    Args:
        spec: The job.
        base: Bounds the length.
        task: Bounds ``auto``.

    Returns:
        Tokens. ``ConfigError`` goes through when they are more than the base holds.
    """
    return pick_max_length(spec.training.max_length, base, task)


def pick_max_length(wanted: int | Literal["auto"], base: Base, task: Task) -> int:
    """The same for a wish alone.

    Args:
        wanted: ``training.max_length``.
        base: Bounds the length.
        task: Bounds ``auto``.

    Returns:
        Tokens.

    Raises:
        ConfigError: More than the base holds.
    """
    if wanted == "auto":
        return min(base.max_length, task.max_length_tokens)
    if wanted > base.max_length:
        raise ConfigError(
            f"max_length {wanted} is more than the {base.max_length} tokens that {base.name} holds",
            code="too_long",
            param="training.max_length",
        )
    return wanted


def resolve(
    spec: JobSpec,
    base: Base,
    task: Task,
    *,
    examples: Sequence[Example],
    validation_rows: int,
    max_length: int,
) -> Resolved:
    """Resolve every ``auto`` but those of ``peft_engine.training.activations``.

    Args:
        spec: The job.
        base: The base, loaded.
        task: The task.
        examples: Training examples, encoded.
        validation_rows: Records of the validation split.
        max_length: From ``resolve_max_length``.

    Returns:
        The settings.

    Raises:
        ConfigError: The base was loaded in another precision than asked for, or the job asks for
            packing and cannot be packed.
    """
    training = spec.training
    if training.precision not in ("auto", base.precision):
        raise ConfigError(
            f"the base is loaded in {base.precision}, not {training.precision}",
            code="precision_mismatch",
            param="training.precision",
        )
    recipes = recipes_for(len(examples))
    written = combine_recipes(spec, task, recipes=recipes)
    recipe = adapt_to_few_rows(
        written,
        rows=len(examples),
        starts_fitted=isinstance(task, HeadTask),
        batch_size=training.batch_size,
        gradient_accumulation=training.gradient_accumulation,
    )
    learning_rate = float(_pick(training.learning_rate, recipe.learning_rate))
    batch_size = _pick(training.batch_size, min(recipe.batch_size, len(examples)))
    epochs = float(_pick(training.epochs, recipe.epochs))
    steps_per_epoch = _steps_per_epoch(
        len(examples), batch_size=batch_size, gradient_accumulation=training.gradient_accumulation
    )
    total = max(1, round(steps_per_epoch * epochs))
    if training.max_steps is not None:
        total = min(total, training.max_steps)
    least = max(steps_per_epoch, math.ceil(total / MAX_EVALUATIONS))
    every = int(_pick(training.eval_every_steps, min(least, total)))
    stopping = training.early_stopping
    metric = _metric("auto" if stopping is None else stopping.metric, task)
    answered = _validation_generate_rows(spec, metric, task)
    return Resolved(
        method=tuple(method.model_dump(mode="json") for method in spec.method),
        learning_rate=learning_rate,
        method_learning_rates={
            method.type: learning_rate
            * (recipes[method.type, task.name].learning_rate / written.learning_rate)
            for method in spec.method
        },
        head_learning_rate=_pick(training.head_learning_rate, recipe.head_learning_rate),
        weight_decay=_pick(training.weight_decay, recipe.weight_decay),
        batch_size=batch_size,
        gradient_accumulation=training.gradient_accumulation,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        total_steps=total,
        eval_every_steps=every,
        max_length=max_length,
        metric=metric,
        patience=_patience(training, evaluations=math.ceil(total / every)),
        precision=base.precision,
        keep=choose_keep(
            training,
            metric=metric,
            validation_rows=deciding_rows(task, metric, rows=validation_rows, answered=answered),
        ),
        validation_generate_rows=answered,
        packing=resolve_packing(spec, base, examples, batch_size=batch_size),
    )


def combine_recipes(spec: JobSpec, task: Task, *, recipes: Recipes = RECIPES) -> Recipe:
    """Defaults of a job, perhaps of several methods.

    The first method gives the learning rate, and the others keep the ratio that their own recipe
    has to it. Passes, weight decay and the head's rate are the highest of all, the batch the
    smallest.

    Args:
        spec: The job.
        task: The task.
        recipes: By method and task.

    Returns:
        The recipe.
    """
    all_ = [recipes[method.type, task.name] for method in spec.method]
    return Recipe(
        learning_rate=all_[0].learning_rate,
        head_learning_rate=max(own.head_learning_rate for own in all_),
        epochs=max(own.epochs for own in all_),
        batch_size=min(own.batch_size for own in all_),
        weight_decay=max(own.weight_decay for own in all_),
    )


def adapt_to_few_rows(
    recipe: Recipe,
    *,
    rows: int,
    starts_fitted: bool,
    batch_size: Literal["auto"] | int = "auto",
    gradient_accumulation: int = 1,
) -> Recipe:
    """A recipe for less data than recipes are written for.

    Small batches and at least ``MIN_FEW_STEPS`` steps. Where a head starts as the best fit of the
    frozen features, training begins near an optimum that few rows cannot move far with profit, so
    the rates fall with the rows. Text begins at the untuned base and has to move: its rates stay.

    Args:
        recipe: As written for the methods and the task.
        rows: Training examples, at least one.
        starts_fitted: Whether the task has a head that is fitted before the first step.
        batch_size: Rows of one forward as asked for; its steps are those that are counted.
        gradient_accumulation: Forwards of one step.

    Returns:
        The same recipe from ``FEW_ROWS`` on.
    """
    if rows >= FEW_ROWS:
        return recipe
    own_batch_size = min(recipe.batch_size, max(MIN_FEW_BATCH_ROWS, rows // 4), rows)
    steps_per_epoch = _steps_per_epoch(
        rows,
        batch_size=_pick(batch_size, own_batch_size),
        gradient_accumulation=gradient_accumulation,
    )
    gentle = max(GENTLEST, rows / FEW_ROWS) if starts_fitted else 1.0
    return replace(
        recipe,
        learning_rate=recipe.learning_rate * gentle,
        head_learning_rate=recipe.head_learning_rate * gentle,
        epochs=max(recipe.epochs, MIN_FEW_STEPS / steps_per_epoch),
        batch_size=own_batch_size,
    )


def deciding_rows(task: Task, metric: str, *, rows: int, answered: int) -> int:
    """Rows that a metric is computed on.

    Args:
        task: The task.
        metric: One of its metrics.
        rows: Records of the split.
        answered: How many of them are answered in full.

    Returns:
        All rows, or those that are answered where the metric looks at texts.
    """
    return min(rows, answered) if _reads_answers(task, metric) else rows


def choose_keep(training: TrainingConfig, *, metric: str, validation_rows: int) -> Keep:
    """Which step is published; see ``docs/decisions/0047``.

    Where the rate falls to 0 a later step is better than an earlier one until validation says
    otherwise, and a metric that counts rows says little. A loss says more, and rises where texts
    are learned by heart.

    Args:
        training: As asked for.
        metric: The metric that decides.
        validation_rows: How many rows it is computed on.

    Returns:
        What ``keep`` comes to.
    """
    if training.keep != "auto":
        return training.keep
    if validation_rows < MIN_SELECTION_ROWS:
        return "last"
    falls = training.schedule != "constant"
    return "one_se" if falls and metric not in LOWER_IS_BETTER else "best"


def _steps_per_epoch(rows: int, *, batch_size: int, gradient_accumulation: int) -> int:
    return math.ceil(math.ceil(rows / batch_size) / gradient_accumulation)


def _pick(asked: Any, default: Any) -> Any:
    return default if asked == "auto" else asked


def _patience(training: TrainingConfig, *, evaluations: int) -> int | None:
    """Evaluations without improvement that end the run.

    A schedule that falls to 0 gains most at its end: whoever ends it early keeps a step at a high
    rate, chosen by a few validation rows; see ``docs/decisions/0045``.
    """
    if training.early_stopping is None:
        return None
    whole = CONSTANT_PATIENCE if training.schedule == "constant" else evaluations
    return int(_pick(training.early_stopping.patience, whole))


def _validation_generate_rows(spec: JobSpec, metric: str, task: Task) -> int:
    """How many validation rows to answer.

    Raises:
        ConfigError: None, though a metric of texts decides.
    """
    decides = _reads_answers(task, metric)
    default = VALIDATION_GENERATE_ROWS if decides else 0
    rows = int(_pick(spec.training.validation_generate_rows, default))
    if decides and rows == 0:
        raise ConfigError(
            f"{metric} decides which step is best, so some validation rows must be answered; give "
            "validation_generate_rows above 0, or another early_stopping.metric",
            code="unknown_metric",
            param="training.validation_generate_rows",
        )
    return rows


def _reads_answers(task: Task, metric: str) -> bool:
    return metric in TEXT_METRICS and task.name == "text-generation"


def _metric(asked: str, task: Task) -> str:
    if asked == "auto":
        return task.metric
    if asked not in task.metrics:
        raise ConfigError(
            f"{task.name} has no metric {asked!r} on validation; use {', '.join(task.metrics)}",
            code="unknown_metric",
            param="training.early_stopping.metric",
        )
    return asked
