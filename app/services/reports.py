"""The report of a job as lists show it."""

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
