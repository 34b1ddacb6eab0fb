"""The records of a split, read from storage in pieces: its bytes are never in memory as a whole."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from core.errors import Conflict, NotFound
from core.storage import ObjectStore
from peft_engine.records import read_canonical

Record = dict[str, Any]

# What was damaged on its way is whole when it is read again; what was stored so is not.
_READINGS = 2


class _Damaged(Exception):
    """What was read is not what was stored."""


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
        Conflict: The bytes are not those that were stored, or are gone; no later attempt will find
            them.
    """
    digest = sha256.removeprefix("sha256:")
    cause: Exception | None = None
    for _ in range(_READINGS):
        try:
            return _read_once(store, key, digest, tick)
        except (_Damaged, NotFound) as error:
            cause = error
    raise Conflict(
        "A split of the data set is damaged in storage; upload the data set again.",
        code="dataset_damaged",
        param="dataset_id",
    ) from cause


def _read_once(store: ObjectStore, key: str, sha256: str, tick: Callable[[], None]) -> list[Record]:
    digest = hashlib.sha256()

    def chunks() -> Iterator[bytes]:
        for chunk in store.stream(key):
            digest.update(chunk)
            tick()
            yield chunk

    try:
        records = list(read_canonical(_lines(chunks())))
    except ValueError as error:  # records are parsed before the digest is known
        raise _Damaged(str(error)) from error
    if digest.hexdigest() != sha256:
        raise _Damaged(f"sha256 is {digest.hexdigest()}")
    return records


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest
