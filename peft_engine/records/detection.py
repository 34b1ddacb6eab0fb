"""Which task and which form the first rows show, and which mapping would make them fit."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from peft_engine.records.problems import NoticeList, ProblemList, shown
from peft_engine.records.row_check import RowCheck
from peft_engine.records.schema import Form, TaskSchema
from peft_engine.records.tasks import TASKS

# From the most telling fields to the least: "text" alone says little.
_ORDER = (
    "relation-extraction",
    "question-answering",
    "multiple-choice",
    "token-classification",
    "text-classification",
    "regression",
    "text-generation",
)
# Seven tasks at most share the votes, so one of them always has so many.
_TELLING_SHARE = 0.14


def scratch_check(decode_json: Callable[[str], Any] | None = None) -> RowCheck:
    """A check whose findings nobody reads, for looking at rows before they count.

    Args:
        decode_json: Decoder for cells that hold JSON; None: they stay text.

    Returns:
        A new check.
    """
    return RowCheck(ProblemList(), NoticeList(), decode_json=decode_json)


def form_of(row: Mapping[str, Any], forms: Sequence[Form], *, nulls: bool = False) -> Form | None:
    """The first form whose needed fields a row has.

    Args:
        row: A prepared row.
        forms: Forms of a task.
        nulls: Take a field that is null for present.

    Returns:
        The form; None when no form fits.
    """
    for form in forms:
        if all(f in row and (nulls or row[f] is not None) for f in form.required):
            return form
    return None


def main_form(rows: Sequence[Mapping[str, Any]], schema: TaskSchema) -> Form | None:
    """The form of most rows; the first one wins a tie.

    Args:
        rows: Prepared rows.
        schema: The task.

    Returns:
        The form; None when no row fits any.
    """
    for nulls in (False, True):
        found = [form for row in rows if (form := form_of(row, schema.forms, nulls=nulls))]
        if found:
            return Counter(found).most_common(1)[0][0]
    return None


def detect_task(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Tell the task from rows.

    Args:
        rows: Some rows as uploaded.

    Returns:
        A name of ``TASKS``; None when nothing fits.
    """
    votes: Counter[str] = Counter()
    for row in rows:
        for name in _ORDER:
            schema = TASKS.get(name)
            if schema and form_of(schema.prepare(row, scratch_check()), schema.forms):
                votes[name] += 1
                break
    if not votes:
        return None
    # A row that lacks its label looks like plain text: the more telling task wins over the many.
    best = next(name for name in _ORDER if votes[name] >= _TELLING_SHARE * votes.total())
    if best == "text-classification" and "regression" in TASKS and _look_like_numbers(rows):
        return "regression"
    return best


def _look_like_numbers(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Labels with a fraction are numbers to predict; whole numbers are more often class numbers."""
    labels = [row["label"] for row in rows if row.get("label") is not None]
    try:
        values = [float(label) for label in labels if not isinstance(label, bool)]
    except (TypeError, ValueError):
        return False
    numeric = all(isinstance(x, int | float) or "." in str(x) or str(x).isdecimal() for x in labels)
    return (
        numeric
        and len(values) == len(labels)
        and any(v != round(v) for v in values if abs(v) < 1e30)
    )


def forms_in_words(schema: TaskSchema) -> str:
    """The forms of a task as a person would write them.

    Args:
        schema: The task.

    Returns:
        Such as ``text, text_pair?, label or text, text_pair?, labels``.
    """
    pairs = {form.required for form in schema.forms if "text_pair" in form.required}
    alone = [form.required for form in schema.forms if form.required not in pairs]
    words = []
    for fields in alone:
        with_pair = (fields[0], "text_pair", *fields[1:]) in pairs
        words.append(", ".join((fields[0], *(["text_pair?"] if with_pair else []), *fields[1:])))
    return " or ".join(words)


def suggest_mapping(columns: Sequence[str], schema: TaskSchema) -> dict[str, str]:
    """A mapping that would make columns fit a task.

    Args:
        columns: Names found.
        schema: The task.

    Returns:
        ``{our field: their column}`` for one form; empty when no form can be filled.
    """
    folded = {name.strip().casefold(): name for name in reversed(columns)}
    for form in schema.forms:
        mapping: dict[str, str] = {}
        for field in form.required:
            names = (field, *schema.aliases.get(field, ()))
            theirs = next((folded[n] for n in names if n in folded), None)
            if theirs is None or theirs in mapping.values():
                break
            mapping[field] = theirs
        else:
            return {ours: theirs for ours, theirs in mapping.items() if ours != theirs}
    return {}


def explain_columns(
    columns: Sequence[str], schema: TaskSchema, other: str | None
) -> tuple[str, str, str]:
    """Why rows do not fit a task.

    Args:
        columns: Names found.
        schema: The task that was asked for.
        other: The task that they fit, or None.

    Returns:
        Code, message and fix.
    """
    found = ", ".join(shown(name) for name in columns[:20]) or "none"
    wanted = forms_in_words(schema)
    if other:
        return (
            "wrong_task",
            f"the rows have {found}, which is {other}; {schema.name} needs {wanted}",
            f"name the task {other}, or send rows with {wanted}",
        )
    mapping = suggest_mapping(columns, schema)
    fix = "rename the columns or send a mapping {our field: your column}; a table needs a header"
    if mapping:
        fix = f"rename the columns, or send mapping={json.dumps(mapping, ensure_ascii=False)}"
    elif {"data", "version"} <= set(columns):
        fix = "this looks like SQuAD's nested file: write one question a row instead"
    return "columns_missing", f"found {found}; {schema.name} needs {wanted}", fix
