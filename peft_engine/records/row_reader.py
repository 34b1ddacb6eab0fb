"""From one uploaded row to a canonical record: rename, unfold, hold it to the set's form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peft_engine.records.detection import form_of, scratch_check
from peft_engine.records.options import SPLIT_NAMES
from peft_engine.records.problems import shown
from peft_engine.records.row_check import RowCheck
from peft_engine.records.schema import Form, Record, TaskSchema
from peft_engine.records.strict_json import Refused
from peft_engine.records.tasks import TASKS

# Names of fields that are left out are told; a hostile file may have a million.
_LISTED_FIELDS = 50
_NAME_CHARACTERS = 200
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "test": "test",
    "testing": "test",
}
_TURNED = tuple(name for schema in TASKS.values() for form in schema.forms for name in form.turned)


def split_named(value: object) -> str | None:
    """The split that a word means.

    Args:
        value: A value of a split column.

    Returns:
        ``train``, ``validation`` or ``test``; None when it means none of them.
    """
    return _SPLIT_WORDS.get(value.strip().lower()) if isinstance(value, str) else None


@dataclass(frozen=True)
class ReadRow:
    """One accepted row.

    Attributes:
        line: Physical line, from 1.
        record: Canonical record.
        split: What its split column says; None without one.
    """

    line: int
    record: Record
    split: str | None = None


@dataclass
class Shape:
    """What the main file decides for all files.

    Attributes:
        task: Schema of the task; None until it is known.
        form: Form of the rows; None until it is known.
    """

    task: TaskSchema | None = None
    form: Form | None = None


def _decode_cells(row: Mapping[str, Any], names: Sequence[str], check: RowCheck) -> dict[str, Any]:
    """The row with the lists and objects that stand as JSON in these cells; a bad one is None."""
    decoded = dict(row)
    for name in names:
        value = row.get(name)
        if not (isinstance(value, str) and value.strip()[:1] in {"[", "{"} and check.decode_json):
            continue
        try:
            decoded[name] = check.decode_json(value)
        except Refused as reason:
            check.bad(reason.code, reason.message, reason.fix, column=name)
            check.unread.add(name)
            decoded[name] = None
    return decoded


@dataclass
class RowReader:
    """Reads the rows of one file.

    Attributes:
        check: Where problems go.
        shape: Task and form of the set.
        mapping: ``{our field: their column}``.
        split_column: Column that says the split; "" for none.
    """

    check: RowCheck
    shape: Shape
    mapping: Mapping[str, str]
    split_column: str = ""

    _left_out: dict[str, int] = field(default_factory=dict, init=False)

    def renamed(self, row: dict[str, Any]) -> Mapping[str, Any]:
        """A row under our names.

        Args:
            row: As uploaded.

        Returns:
            The row with its mapped columns renamed; the row itself without a mapping.
        """
        if not self.mapping:
            return row
        taken = set(self.mapping.values()) | self.mapping.keys()
        rest = {key: value for key, value in row.items() if key not in taken}
        return rest | {ours: row[theirs] for ours, theirs in self.mapping.items() if theirs in row}

    def looked_at(self, raw: dict[str, Any]) -> Mapping[str, Any]:
        """A row before the form of the set is known.

        Args:
            raw: As uploaded.

        Returns:
            The row under our names; in a table, with lists and objects that ``prepare`` turns.
        """
        row = self.renamed(raw)
        if not self.check.textual:
            return row
        return _decode_cells(row, _TURNED, scratch_check(self.check.decode_json))

    def read(self, line: int, raw: dict[str, Any]) -> ReadRow | None:
        """Validate one row; its problems go to the check.

        Args:
            line: Its physical line, from 1.
            raw: The row as uploaded.

        Returns:
            The accepted row; None after a problem.
        """
        self.check.at(line)
        task, form = self.shape.task, self.shape.form
        if task is None or form is None:
            return None
        row = self.renamed(raw)
        split = self._split_of(row)
        if self.check.textual:
            row = self._unfold_cells(row, form)
            if self.check.unread.intersection(form.turned):
                return None  # what the cell would have been turned into is not missing
        row = task.prepare(row, self.check)
        if self._is_mixed(row, task, form):
            return None
        self._count_left_out(row, form)
        record = task.read(row, form, self.check)
        if self.check.failed or record is None:
            return None
        return ReadRow(line, record, split)

    def _split_of(self, row: Mapping[str, Any]) -> str | None:
        if not self.split_column:
            return None
        value = row.get(self.split_column)
        split = split_named(value)
        if split is None:
            self.check.bad(
                "split_value",
                f"the split column holds {shown(value)}",
                f"use {', '.join(SPLIT_NAMES)}",
                column=self.split_column,
            )
        return split

    def _unfold_cells(self, row: Mapping[str, Any], form: Form) -> dict[str, Any]:
        """Lists in a table stand as JSON in a cell; optional cells that are empty are absent."""
        unfolded = _decode_cells(row, form.structured + form.turned, self.check)
        for name in form.optional:
            value = unfolded.get(name)
            if isinstance(value, str) and not value.strip():
                unfolded[name] = None
        return unfolded

    def _is_mixed(self, row: Mapping[str, Any], task: TaskSchema, form: Form) -> bool:
        """Whether a row is of another kind than the set; tells it if so."""
        if all(row.get(name) is not None for name in form.required):
            earlier = task.forms[: task.forms.index(form)]
            mixed = bool(earlier) and form_of(row, earlier) is not None
        else:
            absent = [name for name in form.required if name not in row]
            other = bool(absent) and form_of(row, task.forms) is not None
            mixed = (other and absent != ["text_pair"]) or len(absent) == len(form.required)
        if mixed:
            self._tell_mixed(row, form)
        return mixed

    def _tell_mixed(self, row: Mapping[str, Any], form: Form) -> None:
        found = ", ".join(shown(key) for key in list(row)[:10])
        self.check.bad(
            "mixed_rows",
            f"rows of two kinds: this row has {found}; the others have {', '.join(form.required)}",
            "upload one kind of row at a time",
        )

    def _count_left_out(self, row: Mapping[str, Any], form: Form) -> None:
        for full_name in row.keys() - form.known:
            name = full_name[:_NAME_CHARACTERS]
            if name != self.split_column and (
                name in self._left_out or len(self._left_out) < _LISTED_FIELDS
            ):
                self._left_out[name] = self._left_out.get(name, 0) + 1

    def finish(self) -> None:
        """Tell which fields were left out; call it after the last row."""
        if self._left_out:
            names = ", ".join(f"{shown(n)} ({c} rows)" for n, c in sorted(self._left_out.items()))
            self.check.at(None)
            self.check.notice(
                "fields_left_out",
                f"fields that the task does not use were left out: {names}",
                level="note",
                count=len(self._left_out),
            )
