"""Objects by key: data sets, deltas, checkpoints.

Two twins, ``DirectoryStore`` and ``S3Store``, pass the same contract tests. An object is invisible
until it is complete, and a reader sees the old or the new bytes, never a mix.

Keys are relative paths of plain segments, such as ``deltas/sha256-….safetensors``; see
``core.storage.keys``.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from core.errors import TooLarge
from core.storage.buffers import Aligned, at_start

CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Stored:
    """What was stored.

    Attributes:
        key: Where.
        bytes: How many.
        sha256: Of the bytes, in hex.
    """

    key: str
    bytes: int
    sha256: str


class ObjectStore(Protocol):
    """Storage of whole, immutable-by-habit objects.

    Every method raises ``BadInput`` (``invalid_key``) for a key that leaves its folder, and
    ``Unavailable``: ``storage_full`` when there is no room, ``storage_unavailable`` for every other
    trouble. After either, nothing is visible that was not visible before.
    """

    def put_bytes(self, key: str, data: bytes) -> Stored:
        """Store an object; an existing one is replaced whole."""

    def put_stream(self, key: str, chunks: Iterable[bytes]) -> Stored:
        """Store an object of any size; when ``chunks`` raises, nothing is stored.

        ``chunks`` may come out of the store itself.
        """

    def put_new(self, key: str, data: bytes) -> Stored:
        """Store an object unless there is one; other bytes than the present raise ``Conflict``.

        The same bytes count as written now.
        """

    def get_bytes(self, key: str) -> bytes:
        """Read an object; a missing one raises ``NotFound`` (``object_not_found``)."""

    def get_buffer(self, key: str, *, most_bytes: int, aligned: Aligned = at_start) -> memoryview:
        """Read an object into memory that may be written to, the caller's own.

        ``aligned`` says which byte of it stands at a multiple of ``ALIGNED_BYTES``. A missing one
        raises ``NotFound``, one above ``most_bytes`` ``TooLarge`` before it is read.
        """

    def stream(
        self, key: str, chunk_bytes: int = CHUNK_BYTES, *, from_byte: int = 0
    ) -> Iterator[bytes]:
        """Read an object in pieces of at most ``chunk_bytes``; a missing one raises at once.

        ``from_byte`` is one of its bytes, or 0.
        """

    def exists(self, key: str) -> bool:
        """Tell whether there is an object."""

    def delete(self, key: str) -> None:
        """Remove an object; a missing one is no error."""

    def list(self, prefix: str) -> Iterator[str]:
        """Give the keys under a folder, sorted; none when it is missing, all for an empty name."""

    def list_older(self, prefix: str, *, seconds: float) -> Iterator[str]:
        """Give the keys under a folder, sorted, that were last written so long ago."""

    def delete_older(self, key: str, *, seconds: float) -> bool:
        """Remove an object that was last written so long ago; False when it is newer or missing."""

    def fetch_to(self, key: str, path: Path) -> Stored:
        """Copy an object to a local file, which appears complete or not at all."""

    def ping(self) -> None:
        """Raise ``Unavailable`` when the store cannot be reached."""


def refuse_large(key: str, size: int, most_bytes: int) -> None:
    """Check the size of an object before it is read.

    Args:
        key: Where it lies.
        size: Its bytes.
        most_bytes: The largest that is wanted.

    Raises:
        TooLarge: It is larger.
    """
    if size > most_bytes:
        raise TooLarge(f"the object {key} has {size} bytes, more than the {most_bytes} wanted")
