"""When a run is evaluated, by which metric, on which rows, and what that decides."""

import math

from peft_engine.configs.training import LOWER_IS_BETTER, TrainingConfig
from peft_engine.errors import ConfigError
from peft_engine.parts.texts import TEXT_METRICS
from peft_engine.tasks.protocol import Task
from peft_engine.training.choices import Choice
from peft_engine.training.selection import Keep

MAX_EVALUATIONS = 20
"""Upper bound of evaluations in a run when ``eval_every_steps`` is ``auto``."""

MIN_SELECTION_ROWS = 16
"""Fewest validation rows that choose a step. One row of 16 is already 6 points of accuracy, and the
best of several evaluations on fewer is mostly the luckiest."""

CONSTANT_PATIENCE = 3
"""Evaluations without improvement that end a run at a constant rate; they can dip for two before
they gain."""

VALIDATION_GENERATE_ROWS = 32
"""Validation rows that are answered at each evaluation where a metric of texts decides: one batch,
at most 256 tokens each, so that an evaluation costs some hundred forwards of one token."""


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


def choose_keep(training: TrainingConfig, *, metric: str, validation_rows: int) -> Choice[Keep]:
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
        return Choice(training.keep)
    if validation_rows < MIN_SELECTION_ROWS:
        why = f"{validation_rows} validation rows, fewer than {MIN_SELECTION_ROWS}"
        return Choice("last", f"{why}, would choose by chance")
    if training.schedule == "constant":
        return Choice("best", "the rate is constant, so that a later step need not be better")
    if metric in LOWER_IS_BETTER:
        return Choice("best", f"{metric} rises where rows are learned by heart")
    unclear = f"where {metric} of {validation_rows} validation rows cannot tell"
    return Choice("one_se", f"the rate falls to 0: {unclear}, a later step is better")


def choose_interval(
    training: TrainingConfig, *, steps_per_epoch: int, total_steps: int
) -> Choice[int]:
    """Steps between evaluations.

    Args:
        training: As asked for.
        steps_per_epoch: Steps of one epoch.
        total_steps: Steps of the run.

    Returns:
        What ``eval_every_steps`` comes to: an epoch, or more where that were too many.
    """
    if training.eval_every_steps != "auto":
        return Choice(training.eval_every_steps)
    if total_steps < steps_per_epoch:
        return Choice(total_steps, f"an epoch would be {steps_per_epoch} steps")
    spread = math.ceil(total_steps / MAX_EVALUATIONS)
    if spread <= steps_per_epoch:
        return Choice(steps_per_epoch, "that is one epoch")
    why = (
        f"one each epoch ({steps_per_epoch} steps) would be more than {MAX_EVALUATIONS} evaluations"
    )
    return Choice(spread, f"{why} in {total_steps} steps")


def choose_patience(training: TrainingConfig, *, evaluations: int) -> Choice[int | None]:
    """Evaluations without improvement that end the run.

    A schedule that falls to 0 gains most at its end: whoever ends it early keeps a step at a high
    rate, chosen by a few validation rows; see ``docs/decisions/0045``.

    Args:
        training: As asked for.
        evaluations: How many the run has.

    Returns:
        What ``early_stopping.patience`` comes to; None where nothing ends the run.
    """
    stopping = training.early_stopping
    if stopping is None:
        return Choice(None)
    if stopping.patience != "auto":
        return Choice(stopping.patience)
    if training.schedule == "constant":
        return Choice(CONSTANT_PATIENCE, "the rate is constant")
    return Choice(evaluations, "the rate falls to 0 and the run gains most at its end")


def choose_answered_rows(training: TrainingConfig, metric: str, task: Task) -> Choice[int]:
    """How many validation rows to answer.

    Args:
        training: As asked for.
        metric: The metric that decides.
        task: The task.

    Returns:
        What ``validation_generate_rows`` comes to.

    Raises:
        ConfigError: None, though a metric of texts decides.
    """
    decides, asked = _reads_answers(task, metric), training.validation_generate_rows
    if asked == "auto":
        why = f"{metric}, which decides, looks at texts"
        return Choice(VALIDATION_GENERATE_ROWS, why) if decides else Choice(0)
    if decides and asked == 0:
        raise ConfigError(
            f"{metric} decides which step is best, so some validation rows must be answered; give "
            "validation_generate_rows above 0, or another early_stopping.metric",
            code="unknown_metric",
            param="training.validation_generate_rows",
        )
    return Choice(asked)


def pick_metric(training: TrainingConfig, task: Task) -> str:
    """The metric that decides which step is best.

    Args:
        training: As asked for.
        task: The task.

    Returns:
        Its name.

    Raises:
        ConfigError: The task has no such metric.
    """
    asked = "auto" if training.early_stopping is None else training.early_stopping.metric
    if asked == "auto":
        return task.metric
    if asked not in task.metrics:
        raise ConfigError(
            f"{task.name} has no metric {asked!r} on validation; use {', '.join(task.metrics)}",
            code="unknown_metric",
            param="training.early_stopping.metric",
        )
    return asked


def writes_texts(task: Task) -> bool:
    """Whether the answers of a task are texts, some of which are written to be evaluated.

    Args:
        task: The task.

    Returns:
        False for one that chooses, marks or measures.
    """
    return task.name == "text-generation"


def _reads_answers(task: Task, metric: str) -> bool:
    return metric in TEXT_METRICS and writes_texts(task)
