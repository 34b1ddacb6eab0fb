"""Physical lines of a byte stream, each of bounded length."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO


@dataclass(frozen=True, slots=True)
class Line:
    """One physical line.

    Attributes:
        number: From 1. Blank lines count.
        data: Its bytes without the LF (a CR before it is still there).
        ended: It ended with LF. Only the last line may not.
        too_long: It was over the limit; ``data`` is its beginning.
    """

    number: int
    data: bytes
    ended: bool
    too_long: bool = False


def read_lines(stream: BinaryIO, max_bytes: int) -> Iterator[Line]:
    """Split at LF alone (never at U+2028 or a form feed).

    Args:
        stream: UTF-8 bytes.
        max_bytes: Longest line that is given whole; the rest of a longer one is skipped.

    Yields:
        Each line, blank ones too.
    """
    number = 0
    while True:
        data = stream.readline(max_bytes + 1)
        if not data:
            return
        number += 1
        if data.endswith(b"\n"):
            yield Line(number, data[:-1], True)
        elif len(data) <= max_bytes:
            yield Line(number, data, False)
        else:
            ended = _skip_line(stream, max_bytes)
            yield Line(number, data, ended, too_long=True)


def _skip_line(stream: BinaryIO, max_bytes: int) -> bool:
    while True:
        data = stream.readline(max_bytes)
        if not data:
            return False
        if data.endswith(b"\n"):
            return True


def decode_line(line: Line) -> tuple[str, str | None]:
    """Decode one line as UTF-8.

    Args:
        line: The line.

    Returns:
        The text and None; or "" and what is wrong (offset and byte).
    """
    try:
        return line.data.decode("utf-8"), None
    except UnicodeDecodeError as error:
        bad = line.data[error.start]
        return "", f"not valid UTF-8: byte 0x{bad:02x} at byte {error.start + 1} of the line"
