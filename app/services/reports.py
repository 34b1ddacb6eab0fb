"""The reports of jobs and data sets as lists show them."""

from typing import Any


def leave_details_out(metrics: dict[str, Any] | None) -> dict[str, Any] | None:
    """Metrics without the tables by class, which a list of many jobs would repeat at every look.

    Args:
        metrics: ``train``, ``validation`` and ``test``, or None while there are none.

    Returns:
        The same without ``test.details``.
    """
    test = (metrics or {}).get("test")
    if metrics is None or not isinstance(test, dict):
        return metrics
    return {**metrics, "test": {name: own for name, own in test.items() if name != "details"}}


def as_told(report: dict[str, Any] | None) -> dict[str, Any] | None:
    """What validation found, labels by how common they are, as it was written.

    Postgres keeps the keys of an object in an order of its own.

    Args:
        report: Of a data set, or None while there is none.

    Returns:
        The same, ``label_counts`` of all rows and of each split with the commonest label first,
        ties by name.
    """
    if report is None:
        return None
    splits = {name: _by_count(split) for name, split in report.get("splits", {}).items()}
    return _by_count({**report, "splits": splits} if splits else report)


def _by_count(part: dict[str, Any]) -> dict[str, Any]:
    counts = part.get("label_counts")
    if not counts:
        return part
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {**part, "label_counts": dict(ordered)}


def leave_problems_out(report: dict[str, Any] | None) -> dict[str, Any] | None:
    """What validation found without each single finding, of which there may be a thousand.

    Args:
        report: Of a data set, or None while there is none.

    Returns:
        The same without ``problems`` and ``leakage.examples``; their counts stay.
    """
    if report is None:
        return None
    kept = {name: own for name, own in report.items() if name != "problems"}
    leakage = kept.get("leakage")
    if isinstance(leakage, dict):
        kept["leakage"] = {name: own for name, own in leakage.items() if name != "examples"}
    return kept
