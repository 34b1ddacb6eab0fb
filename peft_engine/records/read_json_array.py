"""Reads one JSON array of objects as a stream: only one element is held at a time.

The end of an element is found by counting brackets outside strings; the element itself then goes
through the same strict decoder as a line of JSON Lines.
"""

import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from peft_engine.records.options import Limits
from peft_engine.records.read_jsonl import ENCODING_FIX
from peft_engine.records.row_check import RowCheck
from peft_engine.records.strict_json import Refused, StrictDecoder

_CHUNK_BYTES = 256 * 1024
_BLANK = re.compile(rb"[ \t\r\n]*")
# A whole string, an opened one that the buffer does not hold to its end, or a structural byte.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+("?)|[\[\]{},]', re.DOTALL)


class _Damaged(Exception):
    """The array as such cannot be read on."""


class _Elements:
    """Cuts the array into its elements."""

    def __init__(self, stream: BinaryIO, max_bytes: int) -> None:
        self._stream = stream
        self._max_bytes = max_bytes
        self._buffer = b""
        self._at = 0  # what is before it was read; cutting it off each time would cost a copy a row
        self._ended = False
        self.line = 1

    def _more(self) -> bool:
        data = b"" if self._ended else self._stream.read(_CHUNK_BYTES)
        self._ended = not data
        self._buffer = self._buffer[self._at :] + data
        self._at = 0
        return bool(data)

    def _read_to(self, end: int) -> bytes:
        taken = self._buffer[self._at : end]
        self._at = end
        self.line += taken.count(b"\n")
        return taken

    def next_byte(self) -> bytes:
        """Skip blanks; the byte that follows stays. Empty at the end of the file."""
        while True:
            blank = _BLANK.match(self._buffer, self._at)
            self._read_to(blank.end() if blank else self._at)
            if self._at < len(self._buffer) or not self._more():
                return self._buffer[self._at : self._at + 1]

    def take(self, byte: bytes) -> bool:
        """Skip blanks and one byte, if it comes next."""
        found = self.next_byte() == byte
        if found:
            self._read_to(self._at + 1)
        return found

    def element(self) -> bytes:
        """The bytes up to the comma or bracket that ends this element; neither is taken.

        Raises:
            _Damaged: The element is too long or does not end.
        """
        depth, at = 0, self._at
        while True:
            match = _TOKEN.search(self._buffer, at)
            if match is None or (match.group().startswith(b'"') and not match.group(1)):
                at = (len(self._buffer) if match is None else match.start()) - self._at
                if len(self._buffer) - self._at > self._max_bytes:
                    message = f"a row is longer than {self._max_bytes} bytes"
                    raise _Damaged(message)
                if not self._more():
                    message = "the array breaks off: the file looks cut off"
                    raise _Damaged(message)
                continue
            mark = match.group()[:1]
            if mark in b"[{":
                depth += 1
            elif depth == 0 and mark in b",]}":
                return self._read_to(match.start())
            elif mark in b"]}":
                depth -= 1
            at = match.end()


def read_json_array(
    stream: BinaryIO, check: RowCheck, limits: Limits
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the objects of one array; what is none becomes a problem of its line.

    Args:
        stream: UTF-8 bytes that begin with ``[`` after blanks.
        check: Where problems go; its line and ``rows_read`` follow the reading.
        limits: Bounds.

    Yields:
        Physical line where the object begins, and the object.
    """
    elements = _Elements(stream, limits.max_line_bytes)
    try:
        yield from _read_elements(elements, check, StrictDecoder(limits))
    except _Damaged as reason:
        check.at(elements.line)
        check.bad(
            "array_damaged",
            f"{reason} (near line {elements.line})",
            "write the file with a JSON library, or one object a line",
        )


def _read_elements(
    elements: _Elements, check: RowCheck, decoder: StrictDecoder
) -> Iterator[tuple[int, dict[str, Any]]]:
    if not elements.take(b"["):
        message = "an array must begin with ["
        raise _Damaged(message)
    while not elements.take(b"]"):
        elements.next_byte()
        line = elements.line
        check.at(line)
        check.rows_read += 1
        data = elements.element()
        try:
            yield line, decoder.record(data.decode("utf-8"))
        except UnicodeDecodeError as error:
            at = data[: error.start].count(b"\n")
            check.at(line + at)
            check.bad("not_utf8", f"not valid UTF-8: byte 0x{data[error.start]:02x}", ENCODING_FIX)
        except Refused as refused:
            check.bad(
                refused.code,
                refused.message.replace("each line", "each element"),
                refused.fix,
                column=refused.column,
            )
        if not elements.take(b",") and elements.next_byte() != b"]":
            message = "a comma or ] is missing between two rows"
            raise _Damaged(message)
    if elements.next_byte():
        message = "something stands after the end of the array"
        raise _Damaged(message)
