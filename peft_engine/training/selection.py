"""Which step is kept, and when to stop looking."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from peft_engine.configs.training import LOWER_IS_BETTER
from peft_engine.errors import ConfigError
from peft_engine.training.checkpoint import Progress

Metrics = Mapping[str, float]
Draws = Sequence[float]
Keep = Literal["best", "one_se", "last"]


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
    """Whether an evaluation replaces the best so far.

    Between equals the lower loss wins, unless gains are asked for that equals do not have.

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
    return gained > min_delta or (gained == min_delta == 0 and metrics["loss"] < best["loss"])


def is_within_noise(progress: Progress, metrics: Metrics, draws: Draws, *, metric: str) -> bool:
    """Whether an evaluation lies no more than one standard error behind the top one.

    The error is that of their difference when the same rows are drawn again for both.

    Args:
        progress: Its ``top_metrics`` and ``top_draws``.
        metrics: The newer evaluation.
        draws: The deciding metric over the same resamples as ``top_draws``.
        metric: Its name.

    Returns:
        True when it does.

    Source: Breiman, Friedman, Olshen and Stone 1984, section 3.4.3 (the 1 SE rule); the paired
    bootstrap in place of their formula, as in ``parts.statistics``.
    """
    error = float(np.std(np.asarray(draws) - np.asarray(progress.top_draws)))
    return gain(metrics, progress.top_metrics, metric=metric) >= -error


def note_evaluation(
    progress: Progress,
    step: int,
    metrics: Metrics,
    draws: Draws = (),
    *,
    metric: str,
    min_delta: float,
    patience: int | None,
    total_steps: int,
    keep: Keep = "best",
) -> bool:
    """Take an evaluation into account.

    The start of training is a candidate as well, so that a job never ends clearly below it; but
    patience is counted among trained steps only, since the first steps may lie below the start.

    Args:
        progress: Changed in place.
        step: Step of the evaluation; 0 is the start.
        metrics: What was found.
        draws: The deciding metric over resamples of the rows, the same ones each time; empty where
            it cannot be resampled, so that only a better step replaces a kept one.
        metric: Name of the deciding metric.
        min_delta: Smallest gain that counts.
        patience: Evaluations without one that end the run; None: nothing does.
        total_steps: Steps of the whole run.
        keep: ``last``: every evaluation replaces the one before it, and none ends the run.
            ``one_se``: so does one that is no more than a standard error behind the top one.

    Returns:
        Whether this step is now the one that is kept.

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
    is_top = is_better(metrics, progress.top_metrics, metric=metric, min_delta=min_delta)
    if is_top:
        progress.top_step, progress.top_metrics = step, dict(metrics)
        progress.top_draws = list(draws)
    is_late = keep == "one_se" and len(draws) == len(progress.top_draws) > 0
    kept = is_top or (is_late and is_within_noise(progress, metrics, draws, metric=metric))
    if kept:
        progress.best_step, progress.best_metrics = step, dict(metrics)
    if step == 0:
        return kept
    if is_better(metrics, progress.best_trained_metrics, metric=metric, min_delta=min_delta):
        progress.best_trained_metrics = dict(metrics)
        progress.evaluations_without_gain = 0
    else:
        progress.evaluations_without_gain += 1
    if patience is not None and progress.evaluations_without_gain >= patience:
        progress.stopped_early = step < total_steps
    return kept


def top_of(progress: Progress) -> dict[str, Any]:
    """The step that was better on validation than the one that is kept.

    Args:
        progress: Of a run at its end.

    Returns:
        ``top_step`` and ``top``, its metrics; empty where there is none.
    """
    if progress.top_step in {-1, progress.best_step}:
        return {}
    return {"top_step": progress.top_step, "top": progress.top_metrics}


def explain_kept(progress: Progress, *, metric: str, rows: int) -> str | None:
    """Why another step than the top one is kept, for people.

    Args:
        progress: Of a run at its end.
        metric: Name of the deciding metric.
        rows: How many validation rows it was computed on.

    Returns:
        A sentence; None where the top one is kept.
    """
    if not top_of(progress):
        return None
    return (
        f"step {progress.best_step} is kept: {metric} {progress.best_metrics[metric]:.4g} on "
        f"{rows} validation rows, within one standard error of the best, "
        f"{progress.top_metrics[metric]:.4g} at step {progress.top_step}"
    )
