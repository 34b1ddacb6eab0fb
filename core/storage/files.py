"""Files that appear complete or not at all."""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

PIECE_BYTES = 1 << 20
"""Length of the pieces that a file is read in: large enough to be worth a call."""

TEMPORARY_PREFIX = ".part-"
"""No object key begins with a dot, so an unfinished file is never taken for an object."""

_TRIES = 100
"""To make a file in a folder that others remove whenever it is empty; each time somebody else's
last file must have gone in between."""


@contextmanager
def temporary_beside(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """Open a new file in the folder of another; whatever is left of it at the end is removed.

    Args:
        path: The file that the new one shall become; missing folders are made.

    Yields:
        The open file and its path.
    """
    descriptor, name = _make_temporary(path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file, temporary
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _make_temporary(folder: Path) -> tuple[int, str]:
    tries = _TRIES
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=folder)
        # what is said of a folder that goes before the file is in it, or while mkdir looks
        except (FileNotFoundError, FileExistsError):
            tries -= 1
            if not tries:
                raise


def remove_empty(folder: Path, *, below: Path) -> None:
    """Remove a folder where nothing is left in it, and those above it likewise.

    A file that somebody is about to make there is safe: a folder with an unfinished file is not
    empty, and whoever finds the folder gone makes it again.

    Args:
        folder: A folder inside of ``below``.
        below: Stays in any case.
    """
    # not empty; gone; or not ours to remove, which costs a folder and no object
    with suppress(OSError):
        while folder != below:
            folder.rmdir()
            folder = folder.parent


def write_all(file: BinaryIO, chunks: Iterable[bytes]) -> tuple[int, str]:
    """Write chunks and make them last.

    Args:
        file: An open file.
        chunks: The content.

    Returns:
        Bytes written, and their SHA-256 in hex.
    """
    digest = hashlib.sha256()
    size = 0
    for chunk in chunks:
        file.write(chunk)
        digest.update(chunk)
        size += len(chunk)
    file.flush()
    os.fsync(file.fileno())
    return size, digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder outlast a power cut.

    Args:
        folder: The folder; one that is gone has lost the file again to somebody who removed it.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, chunks: Iterable[bytes]) -> tuple[int, str]:
    """Write a file under a temporary name, sync it, and give it its name.

    Args:
        path: The file; replaced when it exists.
        chunks: The content; when it raises, the file is as it was.

    Returns:
        Bytes written, and their SHA-256 in hex.
    """
    with temporary_beside(path) as (file, temporary):
        written = write_all(file, chunks)
        temporary.chmod(0o644)
        temporary.replace(path)
    sync_folder(path.parent)
    return written


def file_pieces(path: Path) -> Iterator[bytes]:
    """A file in pieces, for an object of any size.

    Args:
        path: The file.

    Yields:
        At most ``PIECE_BYTES`` each.
    """
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece
