"""From an uploaded file to canonical records: unpack, sniff, read, rename, validate.

One ``FileReading`` reads one file. The main file decides task and form; further files of the same
data set are held to them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, BinaryIO

from peft_engine.records.detection import (
    detect_task,
    explain_columns,
    form_of,
    forms_in_words,
    main_form,
    scratch_check,
)
from peft_engine.records.options import SPLIT_NAMES, Limits, SourceFile
from peft_engine.records.parquet import explain_parquet
from peft_engine.records.problems import NoticeList, ProblemList, shown
from peft_engine.records.read_csv import read_table
from peft_engine.records.read_json_array import read_json_array
from peft_engine.records.read_jsonl import read_jsonl
from peft_engine.records.row_check import RowCheck
from peft_engine.records.schema import Form, Record, TaskSchema
from peft_engine.records.sniffing import FORMATS, Sniffed, refuse_head, sniff
from peft_engine.records.strict_json import Refused, StrictDecoder
from peft_engine.records.tasks import TASKS
from peft_engine.records.unpacking import Unpacked, Unreadable, unpack

# Rows looked at before the first one is judged. Bounded in characters too.
_WINDOW_ROWS = 100
_WINDOW_CHARACTERS = 1_000_000
_LISTED_COLUMNS = 50
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

RawRow = tuple[int, dict[str, Any]]


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


@dataclass
class FileReading:
    """Reads one file.

    Attributes:
        source: The file.
        name: ``all``, ``train``, ``validation`` or ``test``.
        shape: Task and form, filled by the first file that tells them.
        problems: Where problems go.
        notices: Where notices go.
        limits: Bounds.
        format: Stated format or None.
        mapping: ``{our field: their column}``.
        split_column: Column that says the split; "" to ignore such a column, None to use
            ``split`` where its values are names of splits.
        tick: Called at every read of the file; what it raises ends the reading.
    """

    source: SourceFile
    name: str
    shape: Shape
    problems: ProblemList
    notices: NoticeList
    limits: Limits = field(default_factory=Limits)
    format: str | None = None
    mapping: Mapping[str, str] = field(default_factory=dict)
    split_column: str | None = ""
    tick: Callable[[], None] = field(default=lambda: None)

    check: RowCheck = field(init=False)
    found_format: str | None = field(default=None, init=False)
    compression: str | None = field(default=None, init=False)
    encoding: str | None = field(default=None, init=False)
    columns_found: list[str] = field(default_factory=list, init=False)
    _left_out: dict[str, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.check = RowCheck(
            self.problems,
            self.notices,
            file=self.name,
            max_label_characters=self.limits.max_label_characters,
            max_choices=self.limits.max_choices,
            decode_json=StrictDecoder(self.limits).value,
        )

    def rows(self) -> Iterator[ReadRow]:
        """Read the file; what cannot be read becomes a problem.

        Yields:
            Accepted rows in the order of the file.
        """
        if self.format is not None and self.format not in FORMATS:
            self._refuse(
                "format_unknown",
                f"the format {shown(self.format)} is not read",
                f"formats are {', '.join(FORMATS)}, each also packed with gzip",
            )
            return
        try:
            with unpack(self.source.path, self.limits, self.tick) as unpacked:
                self.compression, self.encoding = unpacked.compression, unpacked.encoding
                yield from self._rows(unpacked)
        except Unreadable as reason:
            self.check.bad(reason.code, reason.message, reason.fix)

    def _refuse(self, code: str, message: str, fix: str, line: int | None = None) -> None:
        self.check.at(line)
        self.check.bad(code, message, fix)

    def _rows(self, unpacked: Unpacked) -> Iterator[ReadRow]:
        if not unpacked.head:
            self._refuse("empty_file", "the file is empty (0 bytes)", "upload a file with rows")
            return
        refusal = refuse_head(unpacked.head)
        if refusal:
            self._refuse(refusal.code, refusal.message, refusal.fix, refusal.line)
            return
        sniffed = sniff(unpacked.head, self.source.filename, self.format)
        self.found_format = sniffed.format
        if sniffed.format == "parquet":
            self._refuse(*explain_parquet(self.source.path, unpacked.compression))
            return
        self._tell_surprises(sniffed)
        problems_before = self.problems.total
        yield from self._validated(self._raw_rows(unpacked.stream, sniffed))
        if self.check.rows_read == 0 and self.problems.total == problems_before:
            self._refuse("no_rows", "the file has no rows", "upload a file with rows")

    def _tell_surprises(self, sniffed: Sniffed) -> None:
        self.check.at(None)
        if sniffed.surprise:
            self.check.notice(
                "read_as", sniffed.surprise, "give the file the ending of its content"
            )
        if self.encoding != "utf-8":
            self.check.notice(
                "converted_encoding",
                f"the file is {str(self.encoding).upper()}; it was converted to UTF-8",
                "save the file as UTF-8",
            )

    def _raw_rows(self, stream: BinaryIO, sniffed: Sniffed) -> Iterator[RawRow]:
        if sniffed.format == "jsonl":
            return read_jsonl(stream, self.check, self.limits)
        if sniffed.format == "json":
            return read_json_array(stream, self.check, self.limits)
        self.check.textual = True
        return read_table(stream, self.check, self.limits, sniffed, self._known_columns())

    def _known_columns(self) -> frozenset[str]:
        """Column names that may be put in lower case, and never those that the user mapped."""
        fields = {"split"}
        for schema in [self.shape.task] if self.shape.task else TASKS.values():
            fields.update(*(form.known for form in schema.forms), {"score", "label"})
        return frozenset(fields - set(self.mapping.values()))

    def _validated(self, raw: Iterator[RawRow]) -> Iterator[ReadRow]:
        window: list[RawRow] = []
        characters = 0
        for line, row in raw:
            window.append((line, row))
            characters += sum(len(v) for v in row.values() if isinstance(v, str | list))
            if len(window) >= _WINDOW_ROWS or characters >= _WINDOW_CHARACTERS:
                break
        if not window or not self._decide(window):
            return
        for count, (line, row) in enumerate(chain(window, raw), start=1):
            if count > self.limits.max_rows:
                self._refuse(
                    "too_many_rows",
                    f"more than {self.limits.max_rows} rows",
                    "upload the data in smaller parts",
                    line,
                )
                return
            self.check.at(line)
            accepted = self._read_row(line, row)
            if accepted:
                yield accepted
        self._tell_left_out()

    # -- deciding on columns, task and form ---------------------------------------------------

    def _decide(self, window: list[RawRow]) -> bool:
        """Settle mapping, split column, task and form; False after a problem of the whole file."""
        self.columns_found = list(dict.fromkeys(k for _, row in window for k in row))[
            :_LISTED_COLUMNS
        ]
        self.check.at(self.check.header_line or window[0][0])
        self.check.names.update(self.mapping)
        for ours, theirs in self.mapping.items():
            if theirs not in self.columns_found:
                self.check.bad(
                    "mapping_wrong",
                    f"the mapping takes {shown(ours)} from {shown(theirs)}, which is not there; "
                    f"found {', '.join(shown(c) for c in self.columns_found[:20])}",
                    "name a column of the file",
                    column=theirs,
                )
                return False
        if self.split_column is None:
            values = [row["split"] for _, row in window if "split" in row]
            named = all(isinstance(v, str) and v.strip().lower() in _SPLIT_WORDS for v in values)
            self.split_column = "split" if values and named else ""
        rows = [self._renamed(row) for _, row in window]
        return self._decide_task(rows) and self._decide_form(rows)

    def _decide_task(self, rows: list[Mapping[str, Any]]) -> bool:
        if self.shape.task is None:
            name = detect_task(rows)
            if name is None:
                forms = "; ".join(
                    f"{schema.name}: {forms_in_words(schema)}" for schema in TASKS.values()
                )
                found = ", ".join(shown(c) for c in self.columns_found[:20])
                self.check.bad(
                    "task_unknown",
                    f"the rows have {found}, which fits no task",
                    f"name the task, and fields as it needs them: {forms}",
                )
                return False
            self.shape.task = TASKS[name]
        return True

    def _decide_form(self, rows: list[Mapping[str, Any]]) -> bool:
        task = self.shape.task
        if task is None:
            return False
        prepared = [task.prepare(row, scratch_check()) for row in rows]
        found = main_form(prepared, task)
        if found is None:
            found = self._nearest_form(prepared)
        if found is None:
            other = detect_task(rows)
            code, message, fix = explain_columns(
                self.columns_found, task, other if other != task.name else None
            )
            self.check.bad(code, message, fix)
            return False
        self.shape.form = self.shape.form or found
        return True

    def _nearest_form(self, rows: list[Mapping[str, Any]]) -> Form | None:
        """JSON rows of a further file are told row by row; a table is told once."""
        if self.check.textual or not self.shape.form:
            return None
        has_some = any(row.get(f) is not None for row in rows for f in self.shape.form.required)
        return self.shape.form if has_some else None

    # -- one row ------------------------------------------------------------------------------

    def _renamed(self, row: dict[str, Any]) -> Mapping[str, Any]:
        if not self.mapping:
            return row
        taken = set(self.mapping.values()) | self.mapping.keys()
        rest = {key: value for key, value in row.items() if key not in taken}
        return rest | {ours: row[theirs] for ours, theirs in self.mapping.items() if theirs in row}

    def _read_row(self, line: int, raw: dict[str, Any]) -> ReadRow | None:
        task, form = self.shape.task, self.shape.form
        if task is None or form is None:
            return None
        row = self._renamed(raw)
        split = self._split_of(row)
        row = task.prepare(row, self.check)
        if self.check.textual:
            row = self._unfold_cells(row, form)
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
        split = _SPLIT_WORDS.get(value.strip().lower()) if isinstance(value, str) else None
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
        unfolded = dict(row)
        for name in form.known:
            value = row.get(name)
            if not isinstance(value, str):
                continue
            if name in form.optional and not value.strip():
                unfolded[name] = None
            elif (
                name in form.structured
                and value.strip()[:1] in {"[", "{"}
                and self.check.decode_json
            ):
                try:
                    unfolded[name] = self.check.decode_json(value)
                except Refused as reason:
                    self.check.bad(reason.code, reason.message, reason.fix, column=name)
                    self.check.unread.add(name)
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
        for name in row.keys() - form.known:
            if name != self.split_column and (
                name in self._left_out or len(self._left_out) < _LISTED_COLUMNS
            ):
                self._left_out[name] = self._left_out.get(name, 0) + 1

    def _tell_left_out(self) -> None:
        if self._left_out:
            names = ", ".join(f"{shown(n)} ({c} rows)" for n, c in sorted(self._left_out.items()))
            self.notices.add(
                "fields_left_out",
                f"fields that the task does not use were left out: {names}",
                level="note",
                file=self.name,
                count=len(self._left_out),
            )
