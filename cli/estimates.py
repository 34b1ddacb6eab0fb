"""What a job would take, as a person reads it."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from cli.output import as_text, show_fields, stdout
from cli.progress import as_clock

_PARTS = ("preparing", "steps", "validations", "reports", "writing", "total")
_HEAD = ("id", "status", "reason", "error", "device")
_MEASURES = {
    "allocated": "of the device, the base included",
    "resident_growth": "beside the base, which takes",
}


def show_estimate(estimate: dict[str, Any]) -> None:
    """Prints whether a job fits, how long its parts take, and what it comes to.

    Args:
        estimate: The estimate.
    """
    result = estimate.get("result")
    show_fields({**estimate, "device": (result or {}).get("device")}, _HEAD)
    if result is None:
        return
    for line in _verdict(result):
        stdout.print(line)
    if result.get("seconds"):
        table = Table("part", "minutes", "at least", "at most")
        for name in _PARTS:
            own = result["seconds"][name]
            if own["high"] > 0:
                table.add_row(name, *(as_clock(own[key]) for key in ("likely", "low", "high")))
        stdout.print(table)
        show_fields(
            result,
            (
                "total_steps",
                "validations",
                "tokens",
                "tokens_per_second",
                "trainable_parameters",
                "adapter_bytes",
            ),
        )
    for note in result.get("notes") or []:
        stdout.print(f"Note: {as_text(note)}")


def _verdict(result: dict[str, Any]) -> Iterator[str]:
    memory = result["memory"]
    base = f"{memory['base_bytes'] / 1e6:.0f} MB"
    if memory.get("peak_bytes") is None:
        takes = ""
    elif memory["measure"] == "resident_growth":
        takes = f": {memory['peak_bytes'] / 1e6:.0f} MB {_MEASURES['resident_growth']} {base}"
    else:
        takes = f": {memory['peak_bytes'] / 1e6:.0f} MB {_MEASURES['allocated']}"
    if result["fits"]:
        yield f"[bold]It fits{takes}[/bold]"
    elif result.get("suggestion"):
        settings = " ".join(
            f"--set training.{name}={as_text(value).lower()}"
            for name, value in result["suggestion"].items()
        )
        yield f"[bold]It does not fit. With {settings} it does{takes}[/bold]"
    else:
        yield "[bold]It does not fit, and nothing was found that does[/bold]"
