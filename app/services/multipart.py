"""Receive a multipart form piece by piece: files go to disk, fields stay small.

Knows bytes and a folder; no request, no database, no data set. Why not ``UploadFile``: the
framework reads the whole body before the key is checked, and spools it twice.
"""

import hashlib
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from core.errors import BadInput, TooLarge, UnsupportedMedia
from core.storage import disk_faults_told

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_T = TypeVar("_T")

MAX_FIELD_BYTES = 256 * 1024
"""A mapping or a split is some hundred bytes; a field is no place for data."""

MAX_FIELDS = 32
MAX_FILENAME_CHARS = 255
"""What file systems allow; a name is shown, never used as a path."""


@dataclass(frozen=True)
class ReceivedFile:
    """One file of the form, whole and closed on disk.

    Attributes:
        path: Where the bytes lie; the name of that file is ours, not the sender's.
        filename: The last part of the name that the sender gave, for display; may be empty.
        bytes: Length in bytes.
        sha256: Hex digest of the bytes.
    """

    path: Path
    filename: str
    bytes: int
    sha256: str


@dataclass
class Form:
    """What a whole form held: text by field name and files by field name."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, ReceivedFile] = field(default_factory=dict)


@dataclass
class _Part:
    """The part that is being received."""

    header_name: bytearray = field(default_factory=bytearray)
    header_value: bytearray = field(default_factory=bytearray)
    disposition: bytes = b""
    name: str = ""
    filename: str | None = None
    text: bytearray = field(default_factory=bytearray)
    file: BinaryIO | None = None
    path: Path | None = None
    bytes: int = 0
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)


def boundary_of(content_type: str, *, file_fields: Collection[str]) -> bytes:
    """Read the boundary out of a ``Content-Type`` header.

    Args:
        content_type: The header's value.
        file_fields: What parts of bytes are called, to tell whoever sends no form.

    Returns:
        The boundary between the parts.

    Raises:
        UnsupportedMedia: The value is not ``multipart/form-data``.
        BadInput: There is no boundary.
    """
    kind, options = parse_options_header(content_type)
    if kind.lower() != b"multipart/form-data":
        names = " or ".join(sorted(file_fields))
        raise UnsupportedMedia(
            f"send multipart/form-data, the bytes as a part named {names}", param="content-type"
        )
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise BadInput(
            "the Content-Type header of the form has no boundary",
            param="content-type",
        )
    return boundary


class FormReceiver:
    """Takes the body of a form in pieces of any size.

    Args:
        boundary: As ``boundary_of`` gave it.
        folder: Where files are written; the caller removes it.
        file_fields: Names of the fields that may carry a file.
        max_bytes: The most bytes that the whole body may have.

    Raises:
        BadInput: The boundary is longer than the standard allows.
    """

    def __init__(
        self, boundary: bytes, *, folder: Path, file_fields: frozenset[str], max_bytes: int
    ) -> None:
        self._folder = folder
        self._file_fields = file_fields
        self._max_bytes = max_bytes
        self._received_bytes = 0
        self._ended = False
        self._part = _Part()
        self._form = Form()
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin_part,
            "on_part_data": self._part_data,
            "on_part_end": self._end_part,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_end": self._end,
        }
        self._parser = self._guarded(lambda: MultipartParser(boundary, callbacks))

    def feed(self, piece: bytes) -> None:
        """Take the next bytes of the body.

        Args:
            piece: The bytes, of any length.

        Raises:
            TooLarge: The body or a field is over its limit. ``BadInput``: the form is malformed,
                or has a part that is not known or stands twice. ``Unavailable``: the disk is full.
        """
        self._received_bytes += len(piece)
        if self._received_bytes > self._max_bytes:
            raise TooLarge(
                f"the upload is larger than {self._max_bytes} bytes",
                details=[{"limit_bytes": self._max_bytes}],
            )
        self._guarded(lambda: self._parser.write(piece))

    def close(self) -> Form:
        """End the form.

        Returns:
            All fields and files.

        Raises:
            BadInput: The body stopped before the closing boundary.
        """
        self._guarded(self._parser.finalize)
        if not self._ended:
            raise BadInput(
                "the upload ends before the closing boundary: it was cut off; send it again",
                code="upload_incomplete",
            )
        return self._form

    def abandon(self) -> None:
        """Close the file of a part that never ended; calling it again is harmless."""
        if self._part.file is not None:
            with suppress(OSError):
                self._part.file.close()

    def _guarded(self, call: Callable[[], _T]) -> _T:
        try:
            with disk_faults_told():
                return call()
        except FormParserError as error:
            raise BadInput(f"the multipart form is malformed: {error}") from error

    def _begin_part(self) -> None:
        self._part = _Part()

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._part.header_name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._part.header_value += data[start:end]

    def _end_header(self) -> None:
        part = self._part
        if part.header_name.lower() == b"content-disposition":
            part.disposition = bytes(part.header_value)
        part.header_name.clear()
        part.header_value.clear()

    def _end_headers(self) -> None:
        part = self._part
        _, options = parse_options_header(part.disposition)
        part.name = options.get(b"name", b"").decode("utf-8", "replace")
        if not part.name:
            raise BadInput("a part of the form has no name")
        if part.name in self._form.fields or part.name in self._form.files:
            raise BadInput(
                f"the form has two parts named {part.name[:64]!r}; send one",
                param=part.name[:64],
            )
        if len(self._form.fields) + len(self._form.files) >= MAX_FIELDS:
            raise BadInput(f"the form has more than {MAX_FIELDS} parts")
        if b"filename" in options or part.name in self._file_fields:
            self._open_file(options.get(b"filename", b""))

    def _open_file(self, filename: bytes) -> None:
        part = self._part
        if part.name not in self._file_fields:
            raise BadInput(
                f"{part.name[:64]!r} cannot carry a file; files go into "
                f"{', '.join(sorted(self._file_fields))}",
                code="unknown_field",
                param=part.name[:64],
            )
        part.filename = display_name(filename.decode("utf-8", "replace"))
        part.path = self._folder / part.name
        part.file = part.path.open("wb")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        part, piece = self._part, data[start:end]
        if part.file is not None:
            part.file.write(piece)
            part.digest.update(piece)
            part.bytes += len(piece)
            return
        part.text += piece
        if len(part.text) > MAX_FIELD_BYTES:
            raise TooLarge(
                f"the field {part.name[:64]!r} is larger than {MAX_FIELD_BYTES} bytes",
                param=part.name[:64],
                details=[{"limit_bytes": MAX_FIELD_BYTES}],
            )

    def _end_part(self) -> None:
        part = self._part
        if part.file is not None and part.path is not None:
            part.file.close()
            self._form.files[part.name] = ReceivedFile(
                part.path, part.filename or "", part.bytes, part.digest.hexdigest()
            )
            return
        try:
            self._form.fields[part.name] = part.text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadInput(
                f"the field {part.name[:64]!r} is not valid UTF-8",
                param=part.name[:64],
            ) from error

    def _end(self) -> None:
        self._ended = True


def display_name(filename: str) -> str:
    """Reduce the name that a sender gave to something safe to show and to store.

    Args:
        filename: Any text; may hold folders, control characters and NUL.

    Returns:
        The last part of the path without control characters, 255 characters at most; may be empty.
    """
    last = filename.replace("\\", "/").rsplit("/", 1)[-1]
    shown = "".join(letter for letter in last if letter.isprintable()).strip()
    return "" if shown in {".", ".."} else shown[:MAX_FILENAME_CHARS]
