"""From an uploaded file to canonical records: unpack, sniff, read, rename, validate.

One ``FileReading`` reads one file. The main file decides task and form; further files of the same
data set are held to them.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from peft_engine.records.detection import (
    detect_task,
    explain_columns,
    forms_in_words,
    main_form,
    scratch_check,
)
from peft_engine.records.options import Limits, SourceFile
from peft_engine.records.problems import NoticeList, ProblemList, shown
from peft_engine.records.read_csv import read_table
from peft_engine.records.read_json_array import read_json_array
from peft_engine.records.read_jsonl import read_jsonl
from peft_engine.records.read_parquet import read_parquet
from peft_engine.records.row_check import RowCheck
from peft_engine.records.row_reader import ReadRow, RowReader, Shape, split_named
from peft_engine.records.schema import Form
from peft_engine.records.sniffing import FORMATS, Sniffed, refuse_head, sniff
from peft_engine.records.strict_json import StrictDecoder
from peft_engine.records.tasks import TASKS
from peft_engine.records.unpacking import Unpacked, Unreadable, unpack

# Rows looked at before the first one is judged. Bounded in characters too.
_WINDOW_ROWS = 100
_WINDOW_CHARACTERS = 1_000_000
_LISTED_COLUMNS = 50
_NAME_CHARACTERS = 200

RawRow = tuple[int, dict[str, Any]]


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
    _reader: RowReader = field(init=False)

    def __post_init__(self) -> None:
        self.check = RowCheck(
            self.problems,
            self.notices,
            file=self.name,
            max_label_characters=self.limits.max_label_characters,
            max_choices=self.limits.max_choices,
            decode_json=StrictDecoder(self.limits).value,
        )
        self._reader = RowReader(self.check, self.shape, self.mapping)

    def rows(self) -> Generator[ReadRow, None, None]:
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
        self._tell_surprises(sniffed)
        problems_before = self.problems.total
        yield from self._validated(self._raw_rows(unpacked, sniffed))
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

    def _raw_rows(self, unpacked: Unpacked, sniffed: Sniffed) -> Iterator[RawRow]:
        stream = unpacked.stream
        if sniffed.format == "parquet":
            return read_parquet(self.source.path, unpacked, self.check, self.limits, self.tick)
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
            characters += _characters(row)
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
            accepted = self._reader.read(line, row)
            if accepted:
                yield accepted
        self._reader.finish()

    # -- deciding on columns, task and form ---------------------------------------------------

    def _decide(self, window: list[RawRow]) -> bool:
        """Settle mapping, split column, task and form; False after a problem of the whole file."""
        columns = dict.fromkeys(key for _, row in window for key in row)
        self.columns_found = [name[:_NAME_CHARACTERS] for name in columns][:_LISTED_COLUMNS]
        self.check.at(self.check.header_line or window[0][0])
        self.check.names.update(self.mapping)
        for ours, theirs in self.mapping.items():
            if theirs not in columns:
                self._tell_column(
                    "mapping_wrong",
                    f"the mapping takes {shown(ours)} from {shown(theirs)}, which is not there",
                    theirs,
                )
                return False
        if self.split_column and self.split_column not in columns:
            self._tell_column(
                "split_value",
                f"the split column {shown(self.split_column)} is not there",
                self.split_column,
            )
            return False
        self._reader.split_column = self._find_split_column(window)
        rows = [self._reader.looked_at(row) for _, row in window]
        return self._decide_task(rows) and self._decide_form(rows)

    def _tell_column(self, code: str, message: str, column: str) -> None:
        found = ", ".join(shown(name) for name in self.columns_found[:20])
        self.check.bad(
            code, f"{message}; found {found}", "name a column of the file", column=column
        )

    def _find_split_column(self, window: list[RawRow]) -> str:
        if self.split_column is not None:
            return self.split_column
        values = [row["split"] for _, row in window if "split" in row]
        return "split" if values and all(map(split_named, values)) else ""

    @property
    def deals_by_column(self) -> bool:
        """Whether the rows say themselves which split they are in."""
        return bool(self._reader.split_column)

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


def _characters(value: object) -> int:
    """Roughly how much a value holds, so that the window stays small whatever it is made of."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(len(key) + _characters(item) for key, item in value.items())
    return sum(map(_characters, value)) if isinstance(value, list) else 8
