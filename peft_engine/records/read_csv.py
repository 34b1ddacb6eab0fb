"""Reads CSV and TSV strictly: a header, rows of its length, quotes as in RFC 4180, texts only.

Written by hand because the library's reader keeps a process-wide field limit, joins what an open
quote swallows, and says no line. NA, null, 007 and TRUE stay the texts that they are.
"""

import io
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from typing_extensions import Buffer

from peft_engine.records.lines import Line, decode_line, read_lines
from peft_engine.records.options import Limits
from peft_engine.records.problems import shown
from peft_engine.records.read_jsonl import ENCODING_FIX
from peft_engine.records.row_check import RowCheck
from peft_engine.records.sniffing import Sniffed

_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}


class _LineFeeds(io.RawIOBase):
    """A stream whose bare CR line ends become LF. Used only where no LF was seen."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        data = self._source.read(memoryview(buffer).nbytes).replace(b"\r", b"\n")
        memoryview(buffer)[: len(data)] = data
        return len(data)


class _Record:
    """One record while its lines come in; an open quote carries it over line ends."""

    def __init__(self, line: int, delimiter: str) -> None:
        self.line = line
        self.cells: list[str] = []
        self.open = False
        self.loose = ""
        self.bytes = 0
        self.lines = 0
        self._delimiter = delimiter
        self._quoted: list[str] = []

    def feed(self, text: str) -> None:
        """Take one physical line without its LF."""
        self.lines += 1
        ending = "\r" if text.endswith("\r") else ""
        text = text.removesuffix("\r")
        at = self._close_quote(text, 0) if self.open else self._open_or_take(text, 0)
        while at is not None:
            at = self._open_or_take(text, at)
        if self.open:
            self._quoted.append(ending + "\n")

    def _open_or_take(self, text: str, at: int) -> int | None:
        """Read the cell that begins at ``at``; where the next one begins, or None at the end."""
        if text.startswith('"', at):
            return self._close_quote(text, at + 1)
        end = text.find(self._delimiter, at)
        if end < 0:
            self.cells.append(text[at:])
            return None
        self.cells.append(text[at:end])
        return end + 1

    def _close_quote(self, text: str, at: int) -> int | None:
        """Read on inside quotes from ``at``.

        A quote that nothing closes behind it, as in ``"he said "yes" twice",pos``, is taken as it
        stands, but only within one line: over line ends it would join rows in silence.
        """
        end = text.find('"', at)
        while end >= 0:
            if text.startswith('"', end + 1):
                end = text.find('"', end + 2)
            elif end + 1 == len(text) or text.startswith(self._delimiter, end + 1):
                break
            else:
                self.loose = self.loose or text[end + 1 : end + 41]
                end = text.find('"', end + 1)
        self.open = end < 0
        self._quoted.append((text[at:] if self.open else text[at:end]).replace('""', '"'))
        if self.open:
            return None
        self.cells.append("".join(self._quoted))
        self._quoted = []
        return None if end + 1 == len(text) else end + 2


def read_table(
    stream: BinaryIO, check: RowCheck, limits: Limits, sniffed: Sniffed, known: frozenset[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read rows as dicts of texts; what is none becomes a problem of its line.

    Args:
        stream: UTF-8 bytes.
        check: Where problems go; its line and ``rows_read`` follow the reading.
        limits: Bounds.
        sniffed: Delimiter and line ends.
        known: Column names that are recognised in any case.

    Yields:
        Physical line where the row begins, and column to text.
    """
    if sniffed.bare_cr:
        check.notice(
            "converted_line_ends",
            "the line ends are bare CR (old Mac); they were converted",
            "save the file with LF or CRLF line ends",
        )
        stream = io.BufferedReader(_LineFeeds(stream))
    usual = "\t" if sniffed.format == "tsv" else ","
    if sniffed.delimiter != usual:
        check.notice(
            "delimiter_found",
            f"the columns are separated by {_NAMES[sniffed.delimiter]}, "
            f"not by {_NAMES[usual]}; they were read so",
            level="warning",
        )
    header: list[str] | None = None
    for record in _read_records(stream, check, limits, sniffed.delimiter):
        check.at(record.line)
        if header is None:
            check.header_line = record.line
            header = _read_header(record.cells, check, limits, known)
            if header is None:
                return
            continue
        check.rows_read += 1
        row = _read_row(record, header, check)
        if row is not None:
            yield record.line, row


def _read_records(
    stream: BinaryIO, check: RowCheck, limits: Limits, delimiter: str
) -> Iterator[_Record]:
    record: _Record | None = None
    for line in read_lines(stream, limits.max_line_bytes):
        if record is None and not line.data.strip(b" \r"):
            continue
        text = _read_line(line, check, limits)
        if text is None:
            record = None
            continue
        record = record or _Record(line.number, delimiter)
        record.feed(text)
        record.bytes += len(line.data)
        if record.loose and (record.open or record.lines > 1):
            check.at(record.line)
            check.rows_read += 1
            check.bad(
                "stray_quote",
                f"{shown(record.loose)} stands after a closing quote",
                'write a quote inside a quoted cell twice: ""',
            )
        elif record.open and record.bytes <= limits.max_line_bytes:
            continue
        elif record.open:
            break
        else:
            yield record
        record = None
    if record is not None:
        check.at(record.line)
        check.rows_read += 1
        check.bad(
            "unbalanced_quote",
            f"a quote is opened on line {record.line} and never closed; the rows after it could "
            "not be read",
            'close it, or write a quote inside a quoted cell twice: ""',
        )


def _read_line(line: Line, check: RowCheck, limits: Limits) -> str | None:
    check.at(line.number)
    if line.too_long:
        check.rows_read += 1
        check.bad(
            "line_too_long",
            f"the line is longer than {limits.max_line_bytes} bytes",
            "cut long texts into several rows",
        )
        return None
    text, wrong = decode_line(line)
    if wrong:
        check.rows_read += 1
        check.bad("not_utf8", wrong, ENCODING_FIX)
        return None
    if "\x00" in text:
        check.rows_read += 1
        check.bad("control_character", "a NUL character stands in the line", "take it out")
        return None
    return text


def _read_header(
    cells: list[str], check: RowCheck, limits: Limits, known: frozenset[str]
) -> list[str] | None:
    if len(cells) > limits.max_columns:
        check.bad(
            "too_many_keys",
            f"the header has {len(cells)} columns; the limit is {limits.max_columns}",
            "send only the columns that the task needs",
        )
        return None
    names = [name.strip() for name in cells]
    names = [n.lower() if n.lower() in known and n not in known else n for n in names]
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    for name in twice:
        check.bad(
            "duplicate_column",
            f"the column {shown(name)} stands twice in the header",
            "rename or delete one of them",
            column=name,
        )
    if twice:
        return None
    cleaned = [(a, b) for a, b in zip(cells, names, strict=True) if a != b and b]
    if cleaned:
        check.notice(
            "header_cleaned",
            "column names were trimmed or put in lower case: "
            + ", ".join(f"{shown(a)} is {shown(b)}" for a, b in cleaned[:10]),
            "write the names as the documentation does",
        )
    if "" in names:
        check.notice(
            "empty_columns",
            f"{names.count('')} columns without a name were left out",
            "delete empty columns",
        )
    return names


def _read_row(record: _Record, header: list[str], check: RowCheck) -> dict[str, Any] | None:
    cells = record.cells
    if record.loose:
        check.notice(
            "loose_quotes",
            "quotes inside quoted cells were not written twice; they were taken as they stand",
            'write a quote inside a quoted cell twice: ""',
            level="note",
        )
    if not any(cell.strip() for cell in cells):
        check.rows_read -= 1
        check.notice("empty_rows", "rows without any value were left out", "delete empty rows")
        return None
    if len(cells) != len(header):
        check.bad(
            "unequal_columns",
            f"the row has {len(cells)} columns; the header has {len(header)}",
            "put texts that hold the separator or a line end in double quotes",
        )
        return None
    unnamed = [cell for name, cell in zip(header, cells, strict=True) if not name and cell.strip()]
    if unnamed:
        check.bad(
            "unnamed_column",
            f"{shown(unnamed[0])} stands in a column without a name",
            "name the column in the header or delete it",
        )
        return None
    return {name: cell for name, cell in zip(header, cells, strict=True) if name}
