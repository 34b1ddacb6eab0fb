"""What every task schema offers, and the pieces that all of them read fields with."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from peft_engine.records.problems import shown
from peft_engine.records.row_check import RowCheck

Record = dict[str, Any]

# No exponent-free tricks: what a spreadsheet or a program writes for a number, and nothing else.
_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?\Z", re.ASCII)

_TYPE_NAMES = {
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


@dataclass(frozen=True)
class Form:
    """One shape that the rows of a task may have. A data set has one.

    Attributes:
        kind: Its name in reports.
        inputs: Fields that are given to the model.
        targets: Fields that are to be learned; an input for prediction lacks them.
        optional: Fields that are kept when they are there.
        structured: Fields that are lists or objects; a table gives them as JSON in a cell.
        turned: Lists or objects of other known forms that ``prepare`` turns into this one.
    """

    kind: str
    inputs: tuple[str, ...]
    targets: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    structured: tuple[str, ...] = ()
    turned: tuple[str, ...] = ()

    @property
    def required(self) -> tuple[str, ...]:
        """Fields that every row of a data set needs."""
        return self.inputs + self.targets

    @property
    def known(self) -> frozenset[str]:
        """All fields of this form."""
        return frozenset(self.required + self.optional)


class TaskSchema(Protocol):
    """The record of one task: its forms, its checks and what the whole-set checks ask of it."""

    name: str
    forms: tuple[Form, ...]
    aliases: Mapping[str, tuple[str, ...]]  # our field -> names that mean the same in this task

    def prepare(self, row: Mapping[str, Any], check: RowCheck, /) -> Mapping[str, Any]:
        """Turn other known forms of a row (Alpaca, ShareGPT, …) into ours.

        Returns the row itself when there is nothing to turn. Notes the change in ``check``.
        """
        ...

    def read(self, row: Mapping[str, Any], form: Form, check: RowCheck, /) -> Record | None:
        """Validate one row against a form; fields may be missing or null.

        Every problem of the row goes to ``check``. Returns the canonical record; None (or a
        record that is then dropped) when ``check.failed``.
        """
        ...

    def input_of(self, record: Record, /) -> str:
        """What a model is given, as one text: two rows with the same are the same question."""
        ...

    def target_of(self, record: Record, /) -> str | None:
        """What is to be learned, as one text; None where several answers to one input are right."""
        ...

    def labels_of(self, record: Record, /) -> tuple[str, ...]:
        """The classes in the record, for counts and stratification; empty where there are none.

        In one order, whatever order the record lists them in.
        """
        ...

    def text_of(self, record: Record, /) -> str:
        """All text that a model reads, for counting tokens."""
        ...


def type_name(value: object) -> str:
    """The JSON type of a value in words.

    Args:
        value: Any JSON value.

    Returns:
        Words such as "a list".
    """
    return _TYPE_NAMES.get(type(value), "an unknown value")


def present(row: Mapping[str, Any], field: str, check: RowCheck) -> bool:
    """Whether a needed field is there; a problem when it is absent or null.

    Args:
        row: The row.
        field: Name of the field.
        check: Where problems go.

    Returns:
        True when the field has a value.
    """
    if row.get(field) is not None:
        return True
    if field in check.unread:
        return False
    if field in row:
        check.bad("null_value", f'"{field}" is null', "fill it or leave the row out", column=field)
        return False
    found = ", ".join(shown(key) for key in list(row)[:10]) or "no field"
    check.bad(
        "missing_field",
        f'"{field}" is missing; the row has {found}',
        "add it or leave the row out",
        column=field,
    )
    return False


def read_text(row: Mapping[str, Any], field: str, check: RowCheck) -> str:
    """Read a text that must hold something visible. The text itself stays unchanged.

    Args:
        row: The row.
        field: Name of the field.
        check: Where problems go.

    Returns:
        The text; "" after a problem.
    """
    if not present(row, field, check):
        return ""
    value = row[field]
    if not isinstance(value, str):
        check.bad(
            "wrong_type",
            f'"{field}" must be a text; it is {type_name(value)} ({shown(value)})',
            "put the value in quotes" if isinstance(value, int | float) else "give one text a row",
            column=field,
        )
        return ""
    if not value or value.isspace():
        check.bad(
            "empty_text",
            f'"{field}" is empty or blank',
            "fill it or leave the row out",
            column=field,
        )
        return ""
    if "\x00" in value:
        check.bad(
            "nul_character", f'"{field}" holds U+0000', "take the character out", column=field
        )
        return ""
    return value


def read_text_list(row: Mapping[str, Any], field: str, check: RowCheck) -> list[str] | None:
    """Read a list of texts; its items may be blank.

    Args:
        row: The row.
        field: Name of the field.
        check: Where problems go.

    Returns:
        The list; None after a problem.
    """
    if not present(row, field, check):
        return None
    value = row[field]
    if not isinstance(value, list):
        check.bad(
            "wrong_type",
            f'"{field}" must be a list of texts; it is {type_name(value)}',
            f'write it as a list: "{field}": ["…", "…"]',
            column=field,
        )
        return None
    for at, item in enumerate(value):
        if not isinstance(item, str):
            check.bad(
                "wrong_type",
                f'"{field}"[{at}] must be a text; it is {type_name(item)} ({shown(item)})',
                "put every item in quotes",
                column=field,
            )
            return None
    return value


def read_label(value: object, field: str, check: RowCheck) -> str:
    """Read the name of a class. Numbers and booleans are named as JSON writes them.

    Args:
        value: The label as it came.
        field: Name of the field.
        check: Where problems go; the type is observed as ``label_type``.

    Returns:
        The name; "" after a problem.
    """
    if isinstance(value, bool):
        check.observe("label_type", "boolean")
        return "true" if value else "false"
    if isinstance(value, int):
        check.observe("label_type", "integer")
        return str(value)
    if isinstance(value, float):
        check.observe("label_type", "decimal number")
        return repr(value)
    if not isinstance(value, str):
        check.bad(
            "label_is_list" if isinstance(value, list) else "wrong_type",
            f'"{field}" must be one text; it is {type_name(value)}',
            'one label a row; for several labels a row send "labels": ["…", "…"] in every row'
            if isinstance(value, list)
            else "give the name of the class",
            column=field,
        )
        return ""
    return _check_label(value, field, check)


def _check_label(value: str, field: str, check: RowCheck) -> str:
    check.observe("label_type", "text")
    if not value or value.isspace():
        check.bad(
            "empty_label",
            f'"{field}" is empty or blank: that is no class',
            "name the class or leave the row out",
            column=field,
        )
    elif len(value) > check.max_label_characters:
        check.bad(
            "label_too_long",
            f'"{field}" has {len(value)} characters (limit {check.max_label_characters}): '
            "are the columns swapped?",
            "a label is the name of a class; check which column is which, or send a mapping",
            column=field,
        )
    elif "\x00" in value:
        check.bad(
            "nul_character", f'"{field}" holds U+0000', "take the character out", column=field
        )
    else:
        return value
    return ""


def read_number(value: object, field: str, check: RowCheck) -> float:
    """Read the number that regression predicts. Tables give it as text.

    Args:
        value: The value as it came.
        field: Name of the field.
        check: Where problems go.

    Returns:
        A finite number; 0.0 after a problem.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) <= 1e30:
            return float(value)
        check.bad(
            "not_a_number",
            f'"{field}" is {shown(value)}, beyond what can be learned (1e30)',
            "scale the numbers down",
            column=field,
        )
        return 0.0
    if isinstance(value, str):
        text = value.strip()
        if _DECIMAL.match(text):
            if check.textual:
                return read_number(float(text), field, check)
            fix = "write the number without quotes"
        elif re.fullmatch(r"[+-]?\d+,\d+", text):
            fix = "write a decimal point, not a comma, and no quotes"
        else:
            fix = "this looks like text-classification: name that task, or give numbers"
        check.bad(
            "label_not_number",
            f'"{field}" must be a number; it is the text {shown(value)}',
            fix,
            column=field,
        )
        return 0.0
    check.bad(
        "label_not_number",
        f'"{field}" must be a number; it is {type_name(value)}',
        "give a number",
        column=field,
    )
    return 0.0


def read_index(value: object, field: str, check: RowCheck, code: str) -> int | None:
    """Read a whole number from 0. Booleans are none. Tables give it as text.

    Args:
        value: The value as it came.
        field: Name of the field.
        check: Where problems go.
        code: Code of the problem.

    Returns:
        The number; None after a problem.
    """
    if (
        check.textual
        and isinstance(value, str)
        and re.fullmatch(r"\d{1,9}", value.strip(), re.ASCII)
    ):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    check.bad(
        code,
        f'"{field}" must be a whole number from 0; it is {shown(value)}',
        "count from 0 and write a number, not a letter or a text",
        column=field,
    )
    return None
