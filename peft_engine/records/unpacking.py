"""From an uploaded file to a stream of UTF-8 bytes: gzip with a bomb guard, UTF-16, marks.

Memory stays bounded whatever the file claims. What cannot be read is raised as ``Unreadable``
while reading, never as an error of zlib or of a codec.
"""

import codecs
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from typing_extensions import Buffer

from peft_engine.records.options import Limits
from peft_engine.records.sniffing import HEAD_BYTES

_CHUNK_BYTES = 256 * 1024
_GZIP = b"\x1f\x8b"


class Unreadable(Exception):
    """The bytes of an upload cannot be read on.

    Args:
        code: A key of ``problems.CODES``.
        message: What is wrong.
        fix: What to do.
    """

    def __init__(self, code: str, message: str, fix: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.fix = fix


@dataclass(frozen=True)
class Unpacked:
    """An upload, ready to be read.

    Attributes:
        stream: UTF-8 bytes (not yet checked), no mark in front.
        head: Its first bytes; they are also still in ``stream``.
        compression: ``gzip`` or None.
        encoding: ``utf-8``, ``utf-16`` or ``utf-32`` as uploaded.
    """

    stream: io.BufferedReader
    head: bytes
    compression: str | None
    encoding: str


class _GuardedGzip(io.RawIOBase):
    """Unpacks gzip and stops at the limits."""

    def __init__(self, packed: BinaryIO, packed_bytes: int, limits: Limits) -> None:
        self._gzip = gzip.GzipFile(fileobj=packed)
        self._packed_bytes = packed_bytes
        self._limits = limits
        self._unpacked_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        try:
            data = self._gzip.read(memoryview(buffer).nbytes)
        except (EOFError, gzip.BadGzipFile, zlib.error):
            raise Unreadable(
                "gzip_damaged", "the gzip data is cut off or damaged", "pack and upload it again"
            ) from None
        self._unpacked_bytes += len(data)
        limit = self._limits.max_unpacked_bytes
        far = self._unpacked_bytes > max(
            self._limits.unpack_ratio_floor_bytes,
            self._limits.max_unpack_ratio * self._packed_bytes,
        )
        if self._unpacked_bytes > limit or far:
            raise Unreadable(
                "unpacked_too_large",
                f"the gzip data unpacks to more than {min(self._unpacked_bytes, limit)} bytes from "
                f"{self._packed_bytes}; the limit is {limit} bytes and "
                f"{self._limits.max_unpack_ratio} times the packed size",
                "upload the data in smaller parts",
            )
        memoryview(buffer)[: len(data)] = data
        return len(data)


class _Transcoded(io.RawIOBase):
    """UTF-16 or UTF-32 as UTF-8."""

    def __init__(self, source: BinaryIO, encoding: str) -> None:
        self._source = source
        self._encoding = encoding
        self._decoder = codecs.getincrementaldecoder(encoding)("strict")
        self._ready = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        while not self._ready and not self._ended:
            data = self._source.read(_CHUNK_BYTES)
            self._ended = not data
            try:
                self._ready = self._decoder.decode(data, final=self._ended).encode("utf-8")
            except UnicodeError:
                name = self._encoding.upper()
                raise Unreadable(
                    "not_utf16",
                    f"the file begins as {name} and breaks it later",
                    "save the file as UTF-8",
                ) from None
        size = min(memoryview(buffer).nbytes, len(self._ready))
        memoryview(buffer)[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size


def _buffered(raw: io.RawIOBase) -> io.BufferedReader:
    return io.BufferedReader(raw, _CHUNK_BYTES)


class _Watched(io.FileIO):
    """A file that calls a function at every read, so that reading can be given up."""

    def __init__(self, path: Path, tick: Callable[[], None]) -> None:
        super().__init__(path)
        self._tick = tick

    def readinto(self, buffer: Buffer) -> int:
        self._tick()
        return super().readinto(buffer) or 0


@contextmanager
def unpack(path: Path, limits: Limits, tick: Callable[[], None]) -> Iterator[Unpacked]:
    """Open an upload as UTF-8 bytes.

    Args:
        path: The uploaded file.
        limits: Bounds on unpacking.
        tick: Called at every read of the file; what it raises ends the reading.

    Yields:
        The stream and what was found. Opening and reading may raise ``Unreadable``.
    """
    with _buffered(_Watched(path, tick)) as raw:
        if raw.peek(len(_GZIP))[: len(_GZIP)] != _GZIP:
            yield _decode(raw, None)
            return
        guarded = _GuardedGzip(raw, path.stat().st_size, limits)
        yield _decode(_buffered(guarded), "gzip")


def _decode(stream: io.BufferedReader, compression: str | None) -> Unpacked:
    head = stream.peek(HEAD_BYTES)[:HEAD_BYTES]
    if compression and head.startswith(_GZIP):
        raise Unreadable("gzip_nested", "this is gzip inside gzip", "pack the data once")
    encoding = "utf-8"
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        encoding = "utf-32"
    elif head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif head.startswith(codecs.BOM_UTF8):
        stream.read(len(codecs.BOM_UTF8))
        head = head[len(codecs.BOM_UTF8) :]
    if encoding != "utf-8":
        stream = _buffered(_Transcoded(stream, encoding))
        head = stream.peek(HEAD_BYTES)[:HEAD_BYTES]
    return Unpacked(stream, head, compression, encoding)
