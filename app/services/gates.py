"""The gate of an alias: is the new adapter worse than the present one on the same test rows?

Both were tested when they were published; what is compared is kept with them (``core.db.draws``),
so the answer takes no model and stands in the transaction that moves the alias.
"""

from statistics import quantiles
from typing import Any

from app.schemas.aliases import GateAsked
from core.db import Session, datasets, draws, jobs
from core.db.models import Adapter, MetricDraw
from core.errors import Conflict

_COUNTS_TOKENS = frozenset({"text-generation"})
"""Tasks whose metrics count tokens, which depend on the base, its template and the longest row."""


class _Incomparable(Conflict):
    """The two were not tested alike."""

    default_code = "gate_not_comparable"


def judge(session: Session, present: Adapter, new: Adapter, asked: GateAsked) -> dict[str, Any]:
    """Compare two adapters of a tenant.

    Args:
        session: A session that holds the alias.
        present: Where the alias points.
        new: Where it shall point.
        asked: By which metric and how strictly.

    Returns:
        What was found, for the history: ``metric``, ``rows``, ``before``, ``after``, ``delta`` and
        its 95 % ``confidence_interval`` (above 0: the new one is better), ``max_drop``.

    Raises:
        Conflict: The new one is worse (code ``gate_failed``, with the numbers in ``details``), or
            the two cannot be compared (code ``gate_not_comparable``).
    """
    before, after = _pair(session, present, new, asked.metric)
    sign = -1.0 if after.lower_is_better else 1.0
    gains = [
        sign * (ours - theirs)
        for ours, theirs in zip(draws.values_of(after), draws.values_of(before), strict=True)
    ]
    # 2.5th and 97.5th percentile, as in the interval of a job
    low, *_, high = quantiles(gains, n=40, method="inclusive")
    found = {
        "metric": after.metric,
        "rows": after.rows,
        "compared_with": present.id,
        "before": before.value,
        "after": after.value,
        "delta": sign * (after.value - before.value),
        "confidence_interval": [low, high],
        "max_drop": asked.max_drop,
    }
    worse = high < 0 if asked.max_drop is None else low < -asked.max_drop
    if worse:
        rule = "it is shown to be worse" if asked.max_drop is None else "it may be too much worse"
        raise Conflict(
            f"{_name(new)} was not put in the place of {_name(present)}: on {after.rows} test rows "
            f"{after.metric} is {after.value:.4g} after {before.value:.4g} (gain {low:.4g} to "
            f"{high:.4g}); {rule}",
            code="gate_failed",
            param="gate",
            details=[found],
        )
    return found


def _pair(
    session: Session, present: Adapter, new: Adapter, metric: str | None
) -> tuple[MetricDraw, MetricDraw]:
    """The same metric of both, on the same rows.

    Raises:
        _Incomparable: There is none.
    """
    if present.task != new.task:
        raise _Incomparable(
            f"{_name(present)} does {present.task} and {_name(new)} {new.task}; move the alias "
            "without a gate if that is meant",
            param="gate",
        )
    sides = [draws.list_of(session, adapter.tenant_id, adapter.id) for adapter in (present, new)]
    for adapter, side in zip((present, new), sides, strict=True):
        _check_tested(session, adapter, side)
    before, after = (_choose(side, metric) for side in sides)
    if before is None or after is None or before.metric != after.metric:
        known = sorted(set(sides[0]) & set(sides[1]))
        raise _Incomparable(
            f"both have {', '.join(known) or 'no metric in common'}; name one as gate.metric",
            param="gate.metric",
        )
    _check_same_rows(present, new, before, after)
    return before, after


def _check_tested(session: Session, adapter: Adapter, side: dict[str, MetricDraw]) -> None:
    """Refuse an adapter whose test is missing or tells nothing.

    Raises:
        _Incomparable: That is so.
    """
    if not side:
        raise _Incomparable(
            f"no test results are kept of {_name(adapter)}: it was published without test rows, "
            "from a checkpoint, or by a version that kept none; train it to its end on a data set "
            "with a test split",
            param="gate",
        )
    if adapter.job_id is None:
        return
    job = jobs.get(session, adapter.tenant_id, adapter.job_id)
    dataset = datasets.get_for_worker(session, job.dataset_id)
    leakage = ((dataset.report if dataset else None) or {}).get("leakage") or {}
    if leakage.get("blocks"):
        raise _Incomparable(
            f"{_name(adapter)} was trained on rows of its own test split (allow_leakage); its test "
            "tells nothing",
            param="gate",
        )


def _choose(side: dict[str, MetricDraw], metric: str | None) -> MetricDraw | None:
    if metric is not None:
        return side.get(metric)
    return next((row for row in side.values() if row.deciding), None)


def _check_same_rows(present: Adapter, new: Adapter, before: MetricDraw, after: MetricDraw) -> None:
    if before.test_sha256 != after.test_sha256:
        raise _Incomparable(
            f"{_name(present)} and {_name(new)} were tested on different rows; upload both data "
            "sets with the same test_file and train again, or compare them yourself and move the "
            "alias without a gate",
            param="gate",
        )
    if present.task in _COUNTS_TOKENS and (
        present.base_fingerprint != new.base_fingerprint
        or present.template_digest != new.template_digest
        or before.max_length != after.max_length
    ):
        raise _Incomparable(
            f"{_name(present)} and {_name(new)} do not count the same tokens: their base, template "
            "or max_length differs; train on the same base with the same training.max_length",
            param="gate",
        )
    if (before.rows, before.pairing) != (after.rows, after.pairing):
        raise _Incomparable(
            f"the tests of {_name(present)} and {_name(new)} drew different resamples (another "
            "training.eval_generate_rows, or another release); train the older one again",
            param="gate",
        )


def _name(adapter: Adapter) -> str:
    return f"{adapter.name}@{adapter.version}"
