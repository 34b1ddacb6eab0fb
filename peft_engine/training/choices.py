"""What a setting that was left to ``auto`` came to, and why, for whoever started the job."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True)
class Choice(Generic[Value]):
    """What a setting came to.

    Attributes:
        value: The setting.
        why: What follows "since", with the numbers of this job; None where the job asked for the
            value, or where it is the same for every job of its method and task.
    """

    value: Value
    why: str | None = None


def reasons_of(choices: Mapping[str, Choice[Any]]) -> dict[str, str]:
    """The reasons that there are.

    Args:
        choices: By name of the setting.

    Returns:
        Reasons by the same names, in order.
    """
    return {name: choice.why for name, choice in choices.items() if choice.why is not None}


def show_choice(name: str, value: object, why: str) -> str:
    """Say what a setting came to and why.

    Args:
        name: Of the setting.
        value: What it came to.
        why: The reason.

    Returns:
        A line for the job's log.
    """
    if isinstance(value, bool):
        shown = "on" if value else "off"
    else:
        shown = f"{value:g}" if isinstance(value, float) else str(value)
    return f"{name}: {shown}, since {why}"
