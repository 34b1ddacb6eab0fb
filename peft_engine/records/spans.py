"""Spans over a text or over tokens, shared by the tasks that point into their input."""

from collections.abc import Mapping, Sequence
from typing import Any

from peft_engine.records.problems import shown
from peft_engine.records.row_check import RowCheck
from peft_engine.records.schema import type_name

_COUNT = "offsets count characters (Unicode code points) from 0, and end is exclusive"


def read_span(
    value: object, column: str, within: str | Sequence[str] | None, check: RowCheck
) -> dict[str, int] | None:
    """Read ``{"start", "end", "text"?}`` and hold it against what it points into.

    Args:
        value: The span as it came.
        column: Name of the field, for messages.
        within: The text, or the tokens; None where they could not be read.
        check: Where problems go.

    Returns:
        Start and end; None after a problem.
    """
    if not isinstance(value, Mapping):
        check.bad(
            "wrong_type",
            f'"{column}" must be an object with start and end; it is {type_name(value)}',
            f'write "{column}": {{"start": 0, "end": 4}}',
            column=column,
        )
        return None
    bounds = [_read_bound(value, name, column, check) for name in ("start", "end")]
    start, end = bounds
    if start is None or end is None or within is None:
        return None
    if not start < end <= len(within):
        unit = "characters" if isinstance(within, str) else "tokens"
        said = "ends before it starts" if end <= start else f"ends past the {len(within)} {unit}"
        check.bad("bad_span", f'"{column}" ({start} to {end}) {said}', _COUNT, column=column)
        return None
    if not _same_text(value.get("text"), start, end, column, within, check):
        return None
    return {"start": start, "end": end}


def _read_bound(span: Mapping[str, Any], name: str, column: str, check: RowCheck) -> int | None:
    value = span.get(name)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    check.bad(
        "bad_span",
        f'"{column}.{name}" must be a whole number from 0; it is {shown(value)}',
        _COUNT,
        column=f"{column}.{name}",
    )
    return None


def _same_text(
    said: object, start: int, end: int, column: str, within: str | Sequence[str], check: RowCheck
) -> bool:
    if not isinstance(said, str):
        return True
    stands = within[start:end] if isinstance(within, str) else " ".join(within[start:end])
    if said == stands:
        return True
    fix = _COUNT
    if isinstance(within, str) and _utf16_slice(within, start, end) == said:
        fix = "these offsets count UTF-16 units (as JavaScript does); " + _COUNT
    check.bad(
        "span_text_differs",
        f'"{column}" says {shown(said)} and {shown(stands)} stands at {start} to {end}',
        fix,
        column=column,
    )
    return False


def _utf16_slice(text: str, start: int, end: int) -> str:
    return text.encode("utf-16-le")[2 * start : 2 * end].decode("utf-16-le", "replace")
