"""Reads JSON Lines: one object a line, blank lines allowed, lines counted as editors do."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from peft_engine.records.lines import Line, decode_line, read_lines
from peft_engine.records.options import Limits
from peft_engine.records.row_check import RowCheck
from peft_engine.records.strict_json import Refused, StrictDecoder

_BLANK = b" \t\r"
ENCODING_FIX = "save the file as UTF-8 (in Excel: CSV UTF-8; in an editor: Save with encoding)"


def read_jsonl(
    stream: BinaryIO, check: RowCheck, limits: Limits
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read objects; what is none becomes a problem of its line.

    Args:
        stream: UTF-8 bytes.
        check: Where problems go; its line and ``rows_read`` follow the reading.
        limits: Bounds.

    Yields:
        Physical line and object.
    """
    decoder = StrictDecoder(limits)
    for line in read_lines(stream, limits.max_line_bytes):
        if not line.data.strip(_BLANK):
            continue
        check.at(line.number)
        check.rows_read += 1
        try:
            yield line.number, _read_line(line, decoder, limits)
        except Refused as refused:
            if refused.cut_off and line.ended and _spread(line.data, check.rows_read):
                check.bad(
                    "object_over_lines",
                    "one object a line is needed; this object is spread over several lines",
                    "write each object on one line: json.dumps(row) without indent",
                )
                return
            cut_off = not line.ended and (refused.cut_off or not line.data.endswith(b"}"))
            code = "json_cut_off" if cut_off and refused.code == "not_json" else refused.code
            message = refused.message
            if code == "json_cut_off":
                message = "the last line is not complete JSON: the file looks cut off"
            fix = "upload the file again" if code == "json_cut_off" else refused.fix
            check.bad(code, message, fix, column=refused.column)


def _read_line(line: Line, decoder: StrictDecoder, limits: Limits) -> dict[str, Any]:
    if line.too_long:
        raise Refused(
            "line_too_long",
            f"the line is longer than {limits.max_line_bytes} bytes",
            "cut long texts into several rows",
        )
    text, wrong = decode_line(line)
    if wrong:
        raise Refused("not_utf8", wrong, ENCODING_FIX)
    return decoder.record(text)


def _spread(data: bytes, rows_read: int) -> bool:
    """A first line that only opens an object means a pretty-printed file: one problem is enough."""
    return rows_read == 1 and data.strip(_BLANK) in {b"{", b"[", b"{["}
