"""Reads Parquet, some rows at a time, by pyarrow.

A row is written as JSON and goes through the same strict decoder as a line of JSON Lines: what is
refused there is refused here, by the same words. What a broken file makes pyarrow raise becomes
``Unreadable``.
"""

import json
import shutil
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from peft_engine.records.class_labels import ClassNames, find_class_names, name_classes
from peft_engine.records.options import Limits
from peft_engine.records.problems import shown
from peft_engine.records.read_jsonl import ENCODING_FIX
from peft_engine.records.row_check import RowCheck
from peft_engine.records.strict_json import Refused, StrictDecoder
from peft_engine.records.unpacking import Unpacked, Unreadable

_MAGIC = b"PAR1"
# Magic at both ends and the four bytes of the footer's length.
_LEAST_BYTES = 12
_WRITE_AGAIN = "write or upload the file again"
_MOST_ROWS_AT_ONCE = 1_000
# What is held at a time: by the footer's own words, and at most.
_BYTES_AT_ONCE = 16 * 2**20
_MOST_BATCH_BYTES = 512 * 2**20
# What a hostile footer may make pyarrow allocate.
_MOST_FOOTER_TEXT = 64 * 2**20
_MOST_FOOTER_ITEMS = 1_000_000
_LEAST_BYTES_A_VALUE = 8


def read_parquet(
    path: Path, unpacked: Unpacked, check: RowCheck, limits: Limits, tick: Callable[[], None]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read rows as JSON objects; what is none becomes a problem of its row.

    Args:
        path: The uploaded file.
        unpacked: The same, its gzip taken off, when it was packed once more.
        check: Where problems go; its line and ``rows_read`` follow the reading.
        limits: Bounds.
        tick: Called before each batch of rows; what it raises ends the reading.

    Yields:
        Number of the row, from 1, and the row. ``Unreadable`` is raised of a broken file, or of one
        that is over a limit.
    """
    with _seekable(path, unpacked) as file:
        _check_ends(file)
        with _explained():
            table = _open_table(file)
            columns = _pick_columns(table.schema_arrow, check, limits)
            classes = find_class_names(table.schema_arrow.metadata, limits)
            rows_at_once = _count_rows_at_once(table.metadata, limits)
        if columns:
            _tell_classes(classes, columns, check)
            batches = _batches_of(table, rows_at_once, columns)
            for number, row in _read_rows(_rows_of(batches, tick), check, limits):
                yield number, name_classes(row, classes)


@contextmanager
def _explained() -> Iterator[None]:
    """Whatever pyarrow raises of a broken file, told.

    Raises:
        Unreadable: The file is broken.
    """
    # Imported late: most uploads are texts.
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Unreadable(
            "parquet_damaged", f"this is not a readable Parquet file: {reason[:200]}", _WRITE_AGAIN
        ) from error


def _open_table(file: BinaryIO) -> Any:
    """The file with its texts as numbers in a dictionary, as they are stored.

    A text of megabytes that stands in a thousand rows is one there, and a thousand otherwise.
    """
    from pyarrow.parquet import ParquetFile

    bounds = {
        "thrift_string_size_limit": _MOST_FOOTER_TEXT,
        "thrift_container_size_limit": _MOST_FOOTER_ITEMS,
    }
    table = ParquetFile(file, **bounds)
    leaves = [table.schema.column(place) for place in range(len(table.schema))]
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    return ParquetFile(file, metadata=table.metadata, read_dictionary=texts, **bounds)


@contextmanager
def _seekable(path: Path, unpacked: Unpacked) -> Iterator[BinaryIO]:
    """The file itself, whose end is read first; what was packed is unpacked beside it."""
    if unpacked.compression is None:
        with path.open("rb") as file:
            yield file
        return
    with tempfile.TemporaryFile(dir=path.parent) as spool:
        shutil.copyfileobj(unpacked.stream, spool)
        yield cast(BinaryIO, spool)


def _check_ends(file: BinaryIO) -> None:
    """Tell a whole file from a broken one, before its footer is trusted.

    Raises:
        Unreadable: It is broken.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - 8))
    tail = file.read(8)
    file.seek(0)
    if size < _LEAST_BYTES or tail[4:] != _MAGIC:
        raise Unreadable(
            "parquet_truncated",
            "this is not a whole Parquet file: its end, with the footer, is missing",
            _WRITE_AGAIN,
        )
    length = struct.unpack("<I", tail[:4])[0]
    if not 0 < length <= size - _LEAST_BYTES:
        raise Unreadable(
            "parquet_damaged",
            f"this is not a readable Parquet file: its footer says {length} bytes in a file of "
            f"{size}",
            _WRITE_AGAIN,
        )


def _pick_columns(schema: Any, check: RowCheck, limits: Limits) -> list[str]:
    """Names of the columns that hold what JSON can hold; none after a problem of the file."""
    if len(schema.names) > limits.max_columns:
        check.bad(
            "too_many_keys",
            f"the file has {len(schema.names)} columns; the limit is {limits.max_columns}",
            "send only the columns that the task needs",
        )
        return []
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    for name in twice:
        check.bad(
            "duplicate_column",
            f"the column {shown(name)} stands twice in the file",
            "rename or delete one of them",
            column=name,
        )
    if twice:
        return []
    other = [column for column in schema if not _is_plain(column.type)]
    if other:
        names = ", ".join(
            f"{shown(column.name)} ({str(column.type)[:60]})" for column in other[:20]
        )
        check.notice(
            "columns_left_out",
            f"columns of a type that no task reads were left out: {names}",
            "write what the task needs as texts, numbers or lists of them",
            level="warning",
            count=len(other),
        )
    return [column.name for column in schema if _is_plain(column.type)]


def _tell_classes(classes: ClassNames, columns: Sequence[str], check: RowCheck) -> None:
    named = [column for column in columns if column in classes]
    if named:
        check.notice(
            "classes_named",
            "numbers were replaced by the class names that the file gives: "
            + ", ".join(f"{shown(name)} ({len(classes[name])} names)" for name in named[:20]),
            level="note",
            count=len(named),
        )


def _is_plain(kind: Any) -> bool:
    """Whether a value of a type is a text, number, truth value or null, or made of them."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_plain(kind.value_type)
    if types.is_struct(kind):
        return all(_is_plain(kind.field(place).type) for place in range(kind.num_fields))
    texts = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    numbers = types.is_integer(kind) or types.is_floating(kind)
    return bool(texts or numbers or types.is_boolean(kind) or types.is_null(kind))


def _count_rows_at_once(metadata: Any, limits: Limits) -> int:
    """Rows of a batch, by what the footer says they take.

    Raises:
        Unreadable: All rows together are over the limit.
    """
    groups = [metadata.row_group(place) for place in range(metadata.num_row_groups)]
    columns = [group.column(place) for group in groups for place in range(group.num_columns)]
    size = sum(
        max(column.total_uncompressed_size, _LEAST_BYTES_A_VALUE * column.num_values)
        for column in columns
    )
    if size > limits.max_unpacked_bytes:
        raise Unreadable(
            "unpacked_too_large",
            f"the file unpacks to {size} bytes or so; the limit is {limits.max_unpacked_bytes}",
            "upload the data in smaller parts",
        )
    each = max(1, int(size) // max(1, int(metadata.num_rows)))
    return max(1, min(_MOST_ROWS_AT_ONCE, _BYTES_AT_ONCE // each))


def _batches_of(table: Any, rows_at_once: int, columns: Sequence[str]) -> Iterator[Any]:
    """Row group by row group: pyarrow joins no dictionaries inside lists."""
    for group in range(table.num_row_groups):
        yield from table.iter_batches(
            rows_at_once, row_groups=[group], columns=columns, use_threads=False
        )


def _rows_of(batches: Iterator[Any], tick: Callable[[], None]) -> Iterator[Any]:
    """Rows, and what a row with a text that is not UTF-8 raises in place of it.

    Raises:
        Unreadable: The file is broken, or a few of its rows take too much.
    """
    while True:
        tick()
        with _explained():
            batch = next(batches, None)
        if batch is None:
            return
        if batch.nbytes > _MOST_BATCH_BYTES:
            raise Unreadable(
                "unpacked_too_large",
                f"{batch.num_rows} rows unpack to {batch.nbytes} bytes",
                "cut long texts into several rows",
            )
        # One by one: a row is judged before the next one's texts are copied.
        for place in range(batch.num_rows):
            with _explained():
                try:
                    (row,) = batch.slice(place, 1).to_pylist()
                except UnicodeDecodeError as error:
                    row = error
            yield row


def _read_rows(
    rows: Iterator[Any], check: RowCheck, limits: Limits
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows by the rules of JSON.

    Raises:
        Unreadable: All rows together are over the limit.
    """
    decoder, total = StrictDecoder(limits), 0
    for number, row in enumerate(rows, start=1):
        check.at(number)
        check.rows_read += 1
        if isinstance(row, UnicodeDecodeError):
            wrong = row.object[row.start]
            check.bad("not_utf8", f"not valid UTF-8: byte 0x{wrong:02x}", ENCODING_FIX)
            continue
        text = json.dumps(row, ensure_ascii=False)
        total += len(text)
        if total > limits.max_unpacked_bytes:
            raise Unreadable(
                "unpacked_too_large",
                f"the rows unpack to more than {limits.max_unpacked_bytes} characters",
                "upload the data in smaller parts",
            )
        if len(text) > limits.max_line_bytes:
            check.bad(
                "line_too_long",
                f"the row is longer than {limits.max_line_bytes} characters",
                "cut long texts into several rows",
            )
            continue
        try:
            yield number, decoder.record(text)
        except Refused as refused:
            check.bad(refused.code, refused.message, refused.fix, column=refused.column)
