"""The rows of a split in an object, and where some of them begin, so that a late page is near.

One mark for every so many bytes: a page reads at most those in vain, and a split of 4 GiB has 512.
Smaller files have none, nor have those that were stored before there were marks.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from core.storage.files import file_pieces
from core.storage.keys import dataset_key
from core.storage.store import ObjectStore

MARK_BYTES = 8 * 2**20

Mark = tuple[int, int]
"""Number of a row, from 0, and the byte that it begins with."""


def keep_split(
    store: ObjectStore, path: Path, *, dataset_id: str, split: str, rows: int
) -> dict[str, Any]:
    """Store a split.

    Args:
        store: Where.
        path: Of the canonical rows, one a line.
        dataset_id: Of the data set.
        split: Its name.
        rows: How many there are.

    Returns:
        What the data set says of it: ``{key, rows, sha256, marks}``, marks only if there are any.
    """
    key = dataset_key(dataset_id, split)
    marks: list[Mark] = []
    pieces = marking(file_pieces(path), marks, every_bytes=MARK_BYTES)
    stored = store.put_stream(key, pieces)
    entry = {"key": key, "rows": rows, "sha256": stored.sha256}
    return {**entry, "marks": marks} if marks else entry


def marking(pieces: Iterable[bytes], marks: list[Mark], *, every_bytes: int) -> Iterator[bytes]:
    """Mark the rows of a file while it passes.

    Args:
        pieces: The whole file, in order.
        marks: Grows by one about every so many bytes.
        every_bytes: Least distance of two.

    Yields:
        The same pieces.
    """
    rows, done, due = 0, 0, every_bytes
    for piece in pieces:
        end = piece.find(b"\n", max(due - done, 0)) + 1
        if end:
            marks.append((rows + piece.count(b"\n", 0, end), done + end))
            due = done + end + every_bytes
        rows += piece.count(b"\n")
        done += len(piece)
        yield piece


def nearest_mark(entry: Mapping[str, Any], row: int) -> Mark:
    """Find where to begin to read.

    Args:
        entry: What the data set says of the split.
        row: The first one that is wanted.

    Returns:
        The last mark that is not behind it; the start of the file where there is none.
    """
    before = [(number, byte) for number, byte in entry.get("marks", ()) if number <= row]
    return before[-1] if before else (0, 0)
