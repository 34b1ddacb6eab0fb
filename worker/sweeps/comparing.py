"""Which trial is the best on validation, and how much of that noise explains.

Every trial was measured on the same rows. When rows are drawn again, for all trials alike, the
differences between them move. The more trials there are, the further the luckiest of them stands
from the unluckiest though all be equal; so the intervals of all pairs are widened until they hold
together in 95 % of the draws, whichever trial came out best. Where 0 lies in one, the rows do not
tell the two apart. That is the noise of the rows; seeds are another, seen only where the search has
them.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

# Legend of axes: T trials that were drawn alike, R resamples.

Floats: TypeAlias = npt.NDArray[np.float64]

SEED = "training.seed"

CONFIDENCE = 0.95
"""Share of the draws in which all intervals hold."""

FEW_ROWS = 30
"""On fewer the draws vary too little, as in the verdict of a job (Hesterberg 2015)."""

ROUNDING = 1e-6
"""A difference below this share of the score (of 1 for scores below 1) is what another order of
adding makes of equal numbers, as in the verdict of a job."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trial that has a value.

    Attributes:
        number: Of the trial.
        params: Value by path.
        value: Of the metric over all validation rows.
        draws: The same over resamples of the rows; None where it cannot be resampled.
        rows: How many rows were drawn from.
        pairing: Digest of the resamples; only equal ones are compared.
    """

    number: int
    params: Mapping[str, Any]
    value: float
    draws: tuple[float, ...] | None = None
    rows: int | None = None
    pairing: str | None = None


def compare(found: Sequence[Candidate], *, metric: str, lower_is_better: bool) -> dict[str, Any]:
    """Choose the best candidate, and say how clearly it is the best.

    Args:
        found: At least one; of equals the first is the best.
        metric: Name of the metric.
        lower_is_better: True for losses and errors.

    Returns:
        ``metric``, ``rows``, ``best`` (a number of a trial), ``standing``: by trial, best first,
        how far ``behind`` it is, the 95 % ``confidence_interval`` of that, all trials at once, and
        in which share of the resamples it is the best one (``best_share``); ``level``, the trials
        that the rows do not tell from the best; ``seed_deviation``, how far seeds alone move the
        metric; and ``verdict``, all of it in words.
    """
    sign = -1.0 if lower_is_better else 1.0
    order = sorted(found, key=lambda own: (-sign * own.value, own.number))
    best = order[0]
    pairs = [own for own in order if own.draws is not None and own.pairing == best.pairing]
    shares, intervals = _look_at_draws(pairs, sign)
    standing = [
        {
            "number": own.number,
            "value": own.value,
            "behind": sign * (best.value - own.value) + 0.0,  # never -0.0
            "confidence_interval": intervals.get(own.number),
            "best_share": shares.get(own.number),
        }
        for own in order
    ]
    level = [entry["number"] for entry in standing[1:] if not is_shown_worse(entry)]
    result = {
        "metric": metric,
        "rows": best.rows,
        "best": best.number,
        "standing": standing,
        "level": level,
        "seed_deviation": seed_deviation(found),
    }
    return {**result, "verdict": _in_words(result, best, drawn=len(best.draws or ()))}


def is_shown_worse(entry: Mapping[str, Any]) -> bool:
    """Tell whether the rows show a trial to be worse than the best one.

    Args:
        entry: Of ``standing``.

    Returns:
        False also for one that was not drawn alike, and for the best one.
    """
    interval = entry["confidence_interval"]
    return interval is not None and interval[0] > 0


def seed_deviation(found: Sequence[Candidate]) -> float | None:
    """Measure how far seeds alone move the metric.

    Args:
        found: The candidates.

    Returns:
        The pooled standard deviation of those that differ in their seed alone; None where no two
        do.
    """
    groups: dict[str, list[float]] = {}
    for own in found:
        if SEED in own.params:
            rest = {path: value for path, value in own.params.items() if path != SEED}
            groups.setdefault(json.dumps(rest, sort_keys=True), []).append(own.value)
    several = [values for values in groups.values() if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    if not freedom:
        return None
    squares = sum(statistics.variance(values) * (len(values) - 1) for values in several)
    return float((squares / freedom) ** 0.5)


def _look_at_draws(
    pairs: Sequence[Candidate], sign: float
) -> tuple[dict[int, float], dict[int, list[float]]]:
    """By trial how often it is the best one, and the interval of how far behind the first it is."""
    if not pairs:
        return {}, {}
    scores = sign * np.array([own.value for own in pairs])  # (T,)
    draws = sign * np.array([own.draws for own in pairs])  # (T, R)
    shares = _best_shares(draws)
    behind, deviations = scores[0] - scores, (draws[0] - draws).std(axis=1)  # (T,)
    reach = _widest(scores, draws) * deviations
    intervals = {}
    for place, own in enumerate(pairs[1:], 1):
        low, high = behind[place] - reach[place], behind[place] + reach[place]
        if max(abs(low), abs(high)) < ROUNDING * max(1.0, abs(scores[0])):
            low = high = 0.0
        intervals[own.number] = [float(low), float(high)]
    return dict(zip((own.number for own in pairs), shares.tolist(), strict=True)), intervals


def _best_shares(draws: Floats) -> Floats:
    """In which share of the resamples (T, R) each is the best (T,); those that tie share it."""
    is_top = draws == draws.max(axis=0)
    shares: Floats = (is_top / is_top.sum(axis=0)).mean(axis=1)
    return shares


def _widest(scores: Floats, draws: Floats) -> float:
    """How many standard deviations the furthest of all pairs strays in 95 % of the draws.

    Args:
        scores: Of each trial, (T,).
        draws: The same over the resamples, (T, R).

    Returns:
        About 2 for two trials, 3.4 for 16.

    Source: Tukey's simultaneous intervals, their distribution from the bootstrap, as the maximum of
    studentised statistics in Romano and Wolf 2005, section 4.
    """
    strayed = draws - scores[:, None]  # (T, R)
    furthest = np.zeros(draws.shape[1])  # (R,)
    for place in range(len(scores) - 1):
        apart = np.abs(strayed[place] - strayed[place + 1 :])  # (T - place - 1, R)
        deviations = (draws[place] - draws[place + 1 :]).std(axis=1)
        moves = deviations > ROUNDING * ROUNDING  # those that agree on every row never stray
        if moves.any():
            furthest = np.maximum(furthest, (apart[moves] / deviations[moves, None]).max(axis=0))
    return float(np.quantile(furthest, CONFIDENCE))


def _in_words(result: Mapping[str, Any], best: Candidate, *, drawn: int) -> str:
    first, *standing = result["standing"]
    others = len(standing)
    said = f"Trial {best.number} has the best {result['metric']}, {best.value:.4g}"
    if not others:
        return f"{said}; it is the only one with a value, so there was nothing to choose between."
    if first["best_share"] is None:
        return f"{said}. How much of that is noise is not known: it cannot be resampled."
    said += f" on {best.rows} validation rows"
    worse = sum(is_shown_worse(entry) for entry in standing)
    if worse == others:
        said += f"; each of the {others} others is shown to be worse."
    elif not worse:
        said += f", but these rows show no winner: noise may explain its lead over all {others}."
    else:
        said += f", but noise may explain its lead over {others - worse} of {others} others."
    if best.rows is not None and best.rows < FEW_ROWS:
        said += f" With fewer than {FEW_ROWS} rows the intervals are too narrow."
    share = f"In {first['best_share']:.0%} of {drawn:,} resamples of the rows it is the best one."
    return f"{said} {share} {_of_seeds(result)}"


def _of_seeds(result: Mapping[str, Any]) -> str:
    deviation = result["seed_deviation"]
    if deviation is None:
        return "What another seed would have changed was not tried."
    # of two trials that differ in nothing else, 2 · √2 deviations
    return (
        f"Seeds alone move it by {deviation:.2g} (standard deviation): a lead below "
        f"{2.83 * deviation:.2g} may be the luck of a seed."
    )
