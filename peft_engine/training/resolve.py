"""Every ``auto`` of a job, resolved by a documented rule and shown in the job."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from peft_engine.bases.base import Base
from peft_engine.configs.job import JobSpec
from peft_engine.configs.training import TrainingConfig
from peft_engine.errors import ConfigError
from peft_engine.parts.batching import Example
from peft_engine.runtime import explain_precision, pick_precision
from peft_engine.tasks.protocol import HeadTask, Task
from peft_engine.training.choices import Choice, reasons_of, show_choice
from peft_engine.training.evaluations import (
    choose_answered_rows,
    choose_interval,
    choose_keep,
    choose_patience,
    deciding_rows,
    pick_metric,
)
from peft_engine.training.packing import resolve_packing
from peft_engine.training.recipes import FEW_ROWS, RECIPES, Recipe, Recipes, recipes_for
from peft_engine.training.selection import Keep

MIN_FEW_STEPS = 20
"""Fewest steps with few rows: a recipe's passes over 8 rows would be 4 steps, of which none is at a
rate that the schedule means."""
GENTLEST = 0.15
"""Least share of a recipe's rates with few rows: 3e-4 in place of 2e-3 for LoRA on classification,
which beside 1e-3 lost less on subsets of 8 rows; see benchmarks/LOG.md."""
MIN_FEW_BATCH_ROWS = 4


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
        why: Why settings that were ``auto`` are what they are, where that depends on the job.
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
    why: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The settings for the job, without the reasons.

        Returns:
            JSON values by name.
        """
        return {name: value for name, value in asdict(self).items() if name != "why"}

    def settle(self, **choices: Choice[Any]) -> "Resolved":
        """More of them.

        Args:
            choices: By name of the setting.

        Returns:
            The settings with these values and their reasons.
        """
        values = {name: choice.value for name, choice in choices.items()}
        return replace(self, **values, why={**self.why, **reasons_of(choices)})

    def explain(self) -> Iterator[str]:
        """Say why settings that were ``auto`` are what they are.

        Yields:
            A line for each whose rule looks at the job.
        """
        for name, why in self.why.items():
            yield show_choice(name, getattr(self, name), why)


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
    train_rows: int,
    validation_rows: int,
    max_length: int,
) -> Resolved:
    """Resolve every ``auto`` but those of ``peft_engine.training.activations``.

    Args:
        spec: The job.
        base: The base, loaded.
        task: The task.
        examples: Training examples, encoded; perhaps not all of them.
        train_rows: How many training examples there are.
        validation_rows: Records of the validation split.
        max_length: From ``resolve_max_length``.

    Returns:
        The settings.

    Raises:
        ConfigError: The base was loaded in another precision than asked for, or the job asks for
            packing and cannot be packed.
    """  # noqa: DOC502  raised below
    training = spec.training
    precision = _check_precision(training, base)
    recipes = recipes_for(train_rows)
    written = combine_recipes(spec, task, recipes=recipes)
    recipe = adapt_to_few_rows(
        written,
        rows=train_rows,
        starts_fitted=isinstance(task, HeadTask),
        batch_size=training.batch_size,
        gradient_accumulation=training.gradient_accumulation,
    )
    learning_rate = float(_pick(training.learning_rate, recipe.learning_rate))
    batch_size = _pick(training.batch_size, min(recipe.batch_size, train_rows))
    epochs = float(_pick(training.epochs, recipe.epochs))
    steps_per_epoch = _steps_per_epoch(
        train_rows, batch_size=batch_size, gradient_accumulation=training.gradient_accumulation
    )
    total = max(1, round(steps_per_epoch * epochs))
    if training.max_steps is not None:
        total = min(total, training.max_steps)
    every = choose_interval(training, steps_per_epoch=steps_per_epoch, total_steps=total)
    metric = pick_metric(training, task)
    answered = choose_answered_rows(training, metric, task)
    deciding = deciding_rows(task, metric, rows=validation_rows, answered=answered.value)
    choices: dict[str, Choice[Any]] = {
        "max_length": _explain_length(training, base, task, max_length),
        "precision": precision,
        "eval_every_steps": every,
        "patience": choose_patience(training, evaluations=math.ceil(total / every.value)),
        "validation_generate_rows": answered,
        "keep": choose_keep(training, metric=metric, validation_rows=deciding),
        "packing": resolve_packing(spec, base, examples, batch_size=batch_size),
    }
    few = _explain_few_rows(
        training, recipe, combine_recipes(spec, task), rows=train_rows, steps=steps_per_epoch
    )
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
        metric=metric,
        why={**few, **reasons_of(choices)},
        **{name: choice.value for name, choice in choices.items()},
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


def _steps_per_epoch(rows: int, *, batch_size: int, gradient_accumulation: int) -> int:
    return math.ceil(math.ceil(rows / batch_size) / gradient_accumulation)


def _pick(asked: Any, default: Any) -> Any:
    return default if asked == "auto" else asked


def _explain_few_rows(
    training: TrainingConfig, recipe: Recipe, usual: Recipe, *, rows: int, steps: int
) -> dict[str, str]:
    """Why settings are not what they are from ``FEW_ROWS`` on."""
    why = {
        name: f"{rows} rows are fewer than {FEW_ROWS}: from there on it is {getattr(usual, name):g}"
        for name in ("learning_rate", "head_learning_rate", "batch_size", "epochs")
        if getattr(training, name) == "auto" and getattr(recipe, name) != getattr(usual, name)
    }
    if "epochs" in why and recipe.epochs == MIN_FEW_STEPS / steps:
        why["epochs"] = f"{rows} rows make {steps} steps, and a run has {MIN_FEW_STEPS} at least"
    return why


def _explain_length(
    training: TrainingConfig, base: Base, task: Task, max_length: int
) -> Choice[int]:
    if training.max_length != "auto":
        return Choice(max_length)
    if max_length == base.max_length:
        return Choice(max_length, f"{base.name} holds no more")
    most = f"{base.name} holds {base.max_length}"
    return Choice(max_length, f"{task.name} takes no more unless asked to, though {most}")


def _check_precision(training: TrainingConfig, base: Base) -> Choice[str]:
    """The precision of the base, which was chosen when it was loaded.

    Raises:
        ConfigError: It is another than the job asks for.
    """
    if training.precision not in ("auto", base.precision):
        raise ConfigError(
            f"the base is loaded in {base.precision}, not {training.precision}",
            code="precision_mismatch",
            param="training.precision",
        )
    if training.precision != "auto":
        return Choice(base.precision)
    if pick_precision("auto", device=base.device, parameters=base.parameters) != base.precision:
        return Choice(base.precision, "the base was loaded in it")
    why = explain_precision("auto", base.precision, device=base.device)
    return Choice(base.precision, why.removeprefix("auto: "))
