"""Which step is best, and when to stop looking."""

from collections.abc import Mapping
from typing import Literal

from peft_engine.errors import ConfigError
from peft_engine.training.checkpoint import Progress

Metrics = Mapping[str, float]

LOWER_IS_BETTER = frozenset({"loss", "perplexity", "rmse", "mae", "ece"})
"""Of all other metrics more is better."""


def gain(metrics: Metrics, best: Metrics, *, metric: str) -> float:
    """How much better one evaluation is than another.

    Args:
        metrics: The newer evaluation.
        best: The older one.
        metric: Name of the deciding metric; see ``LOWER_IS_BETTER``.

    Returns:
        Above 0 when the newer is better.
    """
    difference = metrics[metric] - best[metric]
    return -difference if metric in LOWER_IS_BETTER else difference


def is_better(metrics: Metrics, best: Metrics, *, metric: str, min_delta: float) -> bool:
    """Whether an evaluation replaces the best so far; between equals the lower loss wins.

    Args:
        metrics: The newer evaluation.
        best: The best so far; empty when there is none.
        metric: Name of the deciding metric.
        min_delta: Smallest gain that counts.

    Returns:
        True when it does.
    """
    if not best:
        return True
    gained = gain(metrics, best, metric=metric)
    return gained > min_delta or (gained == 0 and metrics["loss"] < best["loss"])


def note_evaluation(
    progress: Progress,
    step: int,
    metrics: Metrics,
    *,
    metric: str,
    min_delta: float,
    patience: int | None,
    total_steps: int,
    keep: Literal["best", "last"] = "best",
) -> bool:
    """Take an evaluation into account.

    The start of training is a candidate for the best step, so that a job never ends below it; but
    patience is counted among trained steps only, since the first steps may lie below the start.

    Args:
        progress: Changed in place.
        step: Step of the evaluation; 0 is the start.
        metrics: What was found.
        metric: Name of the deciding metric.
        min_delta: Smallest gain that counts.
        patience: Evaluations without one that end the run; None: nothing does.
        total_steps: Steps of the whole run.
        keep: ``last``: every evaluation replaces the one before it, and none ends the run.

    Returns:
        Whether this step is now the best.

    Raises:
        ConfigError: The deciding metric cannot be had on these rows.
    """
    if metric not in metrics:
        raise ConfigError(
            f"the validation rows give no {metric}: none of them asks for an answer (rows of plain "
            f"text do not); they give {', '.join(metrics)}",
            code="unknown_metric",
            param="training.early_stopping.metric",
        )
    if keep == "last":
        progress.best_step, progress.best_metrics = step, dict(metrics)
        return True
    best = is_better(metrics, progress.best_metrics, metric=metric, min_delta=min_delta)
    if best:
        progress.best_step, progress.best_metrics = step, dict(metrics)
    if step == 0:
        return best
    if is_better(metrics, progress.best_trained_metrics, metric=metric, min_delta=min_delta):
        progress.best_trained_metrics = dict(metrics)
        progress.evaluations_without_gain = 0
    else:
        progress.evaluations_without_gain += 1
    if patience is not None and progress.evaluations_without_gain >= patience:
        progress.stopped_early = step < total_steps
    return best
