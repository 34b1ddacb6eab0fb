"""Whether a job helped, in one word and one sentence, from its report."""

from collections.abc import Mapping
from typing import Any, Literal

from peft_engine.configs.training import LOWER_IS_BETTER

FEW_TEST_ROWS = 30
"""A percentile bootstrap is too narrow on small samples: its standard error falls short by
√((n - 1) / n), and rows that were not drawn have no tails (Hesterberg 2015, arXiv 1411.5279)."""

ROUNDING = 1e-6
"""A change below this share of the score (of 1 for scores below 1) is what another order of adding
makes of fp32 numbers, as of a delta whose first step was kept; all rows may agree in its sign."""

Helped = bool | Literal["unclear"]


def judge(change: float, interval: tuple[float, float], *, metric: str) -> Helped:
    """Whether a change is a gain.

    Args:
        change: After less before.
        interval: Its 95 % interval.
        metric: Name of the metric; of some less is better.

    Returns:
        True or False where the interval excludes 0, by its side; False where nothing changed at
        all; else ``unclear``.
    """
    low, high = interval
    if low <= 0 <= high:
        return False if change == low == high == 0 else "unclear"
    return (change < 0) == (metric in LOWER_IS_BETTER)


def add_verdict(report: Mapping[str, Any], *, metric: str, rows: int) -> dict[str, Any]:
    """The report with its verdict.

    Args:
        report: Of a split; see ``report_split``.
        metric: The metric that decides; it has an interval.
        rows: Test rows that it was computed on.

    Returns:
        The same with ``metric``, ``helped`` and ``verdict``, a sentence; and ``helped`` in
        ``against_frozen_head`` where there is one.
    """
    before, after = report["before"][metric], report["after"][metric]
    change, interval = _read_change(report, metric, score=before)
    helped = judge(change, interval, metric=metric)
    sentence = (
        f"{_word(helped, change)}: on {rows} test rows {metric} went from {before:.4g} "
        f"({report['before_is']}) to {after:.4g}, {_change(change, interval)}."
    )
    found = {**report, "metric": metric, "helped": helped}
    if rows < FEW_TEST_ROWS:
        sentence += f" With fewer than {FEW_TEST_ROWS} test rows the interval is too narrow."
    against = report.get("against_frozen_head")
    if against is not None and metric in against["confidence_interval"]:
        floor = report["frozen_head"][metric]
        own, own_interval = _read_change(against, metric, score=floor)
        adds = judge(own, own_interval, metric=metric)
        found["against_frozen_head"] = {**against, "helped": adds}
        sentence += (
            f" Against the same head on the frozen base ({floor:.4g}) "
            f"{_added(adds, own)}: {_change(own, own_interval)}."
        )
    return {**found, "verdict": sentence}


def _read_change(
    compared: Mapping[str, Any], metric: str, *, score: float
) -> tuple[float, tuple[float, float]]:
    """A change and its interval; zeros where they are nothing but rounding."""
    change, (low, high) = compared["delta"][metric], compared["confidence_interval"][metric]
    if max(abs(change), abs(low), abs(high)) < ROUNDING * max(1.0, abs(score)):
        return 0.0, (0.0, 0.0)
    return change, (low, high)


def _word(helped: Helped, change: float) -> str:
    if helped == "unclear":
        return "Unclear whether it helped"
    if helped:
        return "It helped"
    return "It made things worse" if change else "It changed nothing"


def _added(helped: Helped, change: float) -> str:
    if helped == "unclear":
        return "it is unclear whether the adapter adds anything"
    if helped:
        return "the adapter adds to it"
    return "the adapter takes from it" if change else "the adapter adds nothing"


def _change(change: float, interval: tuple[float, float]) -> str:
    low, high = interval
    inside = "includes" if low <= 0 <= high else "excludes"
    return f"{change:+.4g} (95 % interval {low:+.4g} … {high:+.4g}, which {inside} 0)"
