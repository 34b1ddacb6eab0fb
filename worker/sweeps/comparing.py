"""Which trial is the best on validation, and how much of that noise explains.

Every trial was measured on the same rows. When rows are drawn again, for all trials alike, the
differences between them move; where 0 lies in what the middle 95 % of the draws give, the rows do
not tell two trials apart. That is the noise of the rows; seeds are another, seen only where the
search has them.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SEED = "training.seed"


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
        how far ``behind`` it is, the 95 % ``confidence_interval`` of that, and in which share of
        the resamples it is the best one (``best_share``); ``level``, the trials that the rows do
        not tell from the best; ``seed_deviation``, how far seeds alone move the metric; and
        ``verdict``, all of it in words.
    """
    sign = -1.0 if lower_is_better else 1.0
    order = sorted(found, key=lambda own: (-sign * own.value, own.number))
    best = order[0]
    pairs = [own for own in order if own.draws is not None and own.pairing == best.pairing]
    shares = _best_shares(pairs, sign)
    standing = []
    for own in order:
        entry: dict[str, Any] = {
            "number": own.number,
            "value": own.value,
            "behind": sign * (best.value - own.value) + 0.0,  # never -0.0
            "confidence_interval": None,
            "best_share": shares.get(own.number),
        }
        if own is not best and own in pairs:
            entry["confidence_interval"] = _interval(best.draws or (), own.draws or (), sign)
        standing.append(entry)
    level = [
        entry["number"]
        for entry in standing
        if entry["number"] != best.number and not is_shown_worse(entry)
    ]
    result = {
        "metric": metric,
        "rows": best.rows,
        "best": best.number,
        "standing": standing,
        "level": level,
        "seed_deviation": seed_deviation(found),
    }
    return {**result, "verdict": _in_words(result, best, shares)}


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


def _best_shares(pairs: Sequence[Candidate], sign: float) -> dict[int, float]:
    """In which share of the resamples each is the best; those that tie share it."""
    wins = {own.number: 0.0 for own in pairs}
    columns = list(zip(*(own.draws or () for own in pairs), strict=True))
    for column in columns:
        top = max(sign * value for value in column)
        winners = [
            own.number for own, value in zip(pairs, column, strict=True) if sign * value == top
        ]
        for number in winners:
            wins[number] += 1 / len(winners)
    return {number: won / len(columns) for number, won in wins.items()}


def _interval(best: Sequence[float], own: Sequence[float], sign: float) -> list[float]:
    """How far behind the best one another is: the 2.5th and 97.5th percentile, as in a job."""
    gains = [sign * (ours - theirs) for ours, theirs in zip(best, own, strict=True)]
    low, *_, high = statistics.quantiles(gains, n=40, method="inclusive")
    return [low, high]


def _in_words(result: Mapping[str, Any], best: Candidate, shares: Mapping[int, float]) -> str:
    others = len(result["standing"]) - 1
    said = f"Trial {best.number} has the best {result['metric']}, {best.value:.4g}"
    if not others:
        return f"{said}; it is the only one with a value, so there was nothing to choose between."
    if best.number not in shares:
        return f"{said}. How much of that is noise is not known: it cannot be resampled."
    said += f" on {best.rows} validation rows"
    worse = sum(is_shown_worse(entry) for entry in result["standing"])
    if worse == others:
        said += f"; each of the {others} others is shown to be worse."
    elif not worse:
        said += f", but these rows show no winner: noise may explain its lead over all {others}."
    else:
        said += f", but noise may explain its lead over {others - worse} of {others} others."
    share = f"In {shares[best.number]:.0%} of 1,000 resamples of the rows it is the best one."
    return f"{said} {share} {_of_seeds(result)}"


def _of_seeds(result: Mapping[str, Any]) -> str:
    deviation = result["seed_deviation"]
    if deviation is None:
        return "What another seed would have changed was not tried."
    return f"Seeds alone move it by {deviation:.2g} (standard deviation)."
