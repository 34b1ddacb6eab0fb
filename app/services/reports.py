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
