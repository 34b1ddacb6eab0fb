"""The test report of a job, as a person reads it."""

from typing import Any

from rich.table import Table

from cli.output import as_text, stdout

_SHOWN_BASELINES = 5


def show_test(job: dict[str, Any]) -> None:
    """Prints whether a job helped, before and after, and what the adapter adds to the frozen head.

    Args:
        job: A job; without a test report nothing is printed.
    """
    _show_base((job.get("metrics") or {}).get("base"))
    test = (job.get("metrics") or {}).get("test")
    if not test or not test.get("after"):
        return
    table = Table("on the test split", "before", "after", "change", "95 % interval of the change")
    for metric, after in test["after"].items():
        before = (test.get("before") or {}).get(metric)
        numbers = [as_text(value) for value in (before, after)]
        table.add_row(metric, *numbers, *_change(test, metric))
    floor = test.get("frozen_head") or {}
    for metric, after in test["after"].items():
        if metric in floor:
            change = _change(test.get("against_frozen_head") or {}, metric)
            table.add_row(f"{metric}, frozen head", as_text(floor[metric]), as_text(after), *change)
    stdout.print(table)
    stdout.print(f"{test.get('rows')} rows. Before: {test.get('before_is') or 'the base as it is'}")
    for own in (test.get("baselines") or [])[:_SHOWN_BASELINES]:
        if own["what"] != test.get("before_is"):
            value = as_text((own.get("metrics") or {}).get(test.get("metric")))
            stdout.print(
                f"Also without tuning: {value} on {own['rows']} rows, {as_text(own['what'])}"
            )
    if test.get("verdict"):
        stdout.print(f"[bold]{as_text(test['verdict'])}[/bold]")
    if floor:
        stdout.print("Frozen head: the same head fitted on the base without an adapter")


def _show_base(about: dict[str, Any] | None) -> None:
    """Prints what a derived base costs and brings."""
    if not about:
        return
    names = ("untouched", "derived", "tuned")
    table = Table("base", *(f"{name}: {about[name]['name']}" for name in names))
    table.add_row("megabytes", *(f"{about[name]['bytes'] / 1e6:.1f}" for name in names))
    table.add_row("ms a forward", *(as_text(about[name]["forward_ms"]) for name in names))
    for metric in about["tuned"]["metrics"]:
        values = (about[name]["metrics"].get(metric) for name in names)
        table.add_row(metric, *(as_text(value) for value in values))
    stdout.print(table)
    stdout.print(f"A forward of {about['rows']} test rows with {about['tokens']} tokens.")


def _change(compared: dict[str, Any], metric: str) -> tuple[str, str]:
    change = (compared.get("delta") or {}).get(metric)
    low, high = (compared.get("confidence_interval") or {}).get(metric) or (None, None)
    interval = "-" if low is None else f"{low:+.3f} … {high:+.3f}"
    return "-" if change is None else f"{change:+.3f}", interval
