"""The records of a split, read from storage in pieces: its bytes are never in memory as a whole."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from core.errors import Unavailable
from core.storage import ObjectStore
from peft_engine.records import read_canonical

Record = dict[str, Any]


def read_split(
    store: ObjectStore, key: str, *, sha256: str, tick: Callable[[], None]
) -> list[Record]:
    """Read the canonical records of a split and check them against their digest.

    Args:
        store: Where the split is.
        key: Its key.
        sha256: What its bytes must give, with or without ``sha256:`` before it.
        tick: Called after every piece.

    Returns:
        The records, in order.

    Raises:
        Unavailable: The bytes are not those that were stored.
    """
    digest = hashlib.sha256()

    def chunks() -> Iterator[bytes]:
        for chunk in store.stream(key):
            digest.update(chunk)
            tick()
            yield chunk

    cause: ValueError | None = None
    records: list[Record] = []
    try:
        records = list(read_canonical(_lines(chunks())))
    except ValueError as error:
        cause = error  # records are parsed before the digest is known
    if cause is not None or digest.hexdigest() != sha256.removeprefix("sha256:"):
        raise Unavailable(
            "A split of the data set is damaged in storage; upload the data set again.",
            code="storage_unavailable",
        ) from cause
    return records


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest
