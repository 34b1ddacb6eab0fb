"""Which stored objects a row still speaks for; others are leftovers of something cut short.

Knows the keys of ``core.storage.keys`` by their folders and nothing else of storage.

Equal deltas are one object, of adapters and of checkpoints, so that one may be removed while
another job publishes it. Whoever writes the row of an object holds its key (``hold_object``) and
then looks whether the bytes are there; whoever removes the bytes (``remove_unneeded``) holds it
from asking for rows to their end.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db.engine import Database
from core.db.locks import lock_name
from core.db.models import Adapter, BatchPart, Checkpoint, Dataset, File, UploadPart
from core.states import DatasetStatus

_QUERY_KEYS = 500
"""Keys of one query; a database takes some thousand parameters."""


def hold_object(session: Session, key: str) -> None:
    """Keep an object from being removed until the transaction ends; it may be gone already.

    Args:
        session: A writing session that is about to write the object's row.
        key: Its storage key.
    """
    lock_name(session, f"objects/{key}")


def remove_unneeded(database: Database, key: str, remove: Callable[[str], object]) -> bool:
    """Remove an object unless a row needs it, no row being written meanwhile.

    Args:
        database: Where the rows stand. On SQLite its one writer waits for ``remove``.
        key: Storage key in one of ``FOLDERS``.
        remove: What removes the bytes; gives False when it left them.

    Returns:
        True when they were removed.
    """
    folder = key.partition("/")[0]
    with database.write() as session:
        hold_object(session, key)
        return not find_spoken_for(session, folder, [key]) and remove(key) is not False


def find_spoken_for(session: Session, folder: str, keys: Sequence[str]) -> set[str]:
    """Find the keys that some row needs.

    Args:
        session: An open session.
        folder: One of ``FOLDERS``.
        keys: Storage keys in it.

    Returns:
        Those that must stay.
    """
    found: set[str] = set()
    for start in range(0, len(keys), _QUERY_KEYS):
        found |= FOLDERS[folder](session, keys[start : start + _QUERY_KEYS])
    return found


def _deltas(session: Session, keys: Sequence[str]) -> set[str]:
    published = sa.select(Adapter.key).where(Adapter.key.in_(keys), Adapter.deleted_at.is_(None))
    kept = sa.select(Checkpoint.delta_key).where(Checkpoint.delta_key.in_(keys))
    return set(session.scalars(published.union_all(kept)))


def _checkpoints(session: Session, keys: Sequence[str]) -> set[str]:
    return set(session.scalars(sa.select(Checkpoint.key).where(Checkpoint.key.in_(keys))))


def _splits(session: Session, keys: Sequence[str]) -> set[str]:
    return _of_datasets(session, keys)


def _uploads(session: Session, keys: Sequence[str]) -> set[str]:
    # raw bytes are of use until the validation has ended; those of an import never have a row
    waiting = _of_datasets(session, keys, Dataset.status == DatasetStatus.VALIDATING)
    return waiting | _parts(session, keys)


def _parts(session: Session, keys: Sequence[str]) -> set[str]:
    # the row of a part goes when its upload is completed, cancelled or expired
    part_ids = {key: key.rpartition("/")[2] for key in keys}
    query = sa.select(UploadPart.id).where(UploadPart.id.in_(set(part_ids.values())))
    living = set(session.scalars(query))
    return {key for key, part_id in part_ids.items() if part_id in living}


def _files(session: Session, keys: Sequence[str]) -> set[str]:
    query = sa.select(File.key).where(File.key.in_(keys), File.deleted_at.is_(None))
    return set(session.scalars(query))


def _batch_parts(session: Session, keys: Sequence[str]) -> set[str]:
    return set(session.scalars(sa.select(BatchPart.key).where(BatchPart.key.in_(keys))))


def _of_datasets(
    session: Session, keys: Sequence[str], *conditions: sa.ColumnElement[bool]
) -> set[str]:
    owners = {key: key.split("/")[1] for key in keys}
    query = sa.select(Dataset.id).where(
        Dataset.id.in_(set(owners.values())), Dataset.deleted_at.is_(None), *conditions
    )
    living = set(session.scalars(query))
    return {key for key, owner in owners.items() if owner in living}


FOLDERS: Mapping[str, Callable[[Session, Sequence[str]], set[str]]] = MappingProxyType(
    {
        "batches": _batch_parts,
        "checkpoints": _checkpoints,
        "datasets": _splits,
        "deltas": _deltas,
        "files": _files,
        "uploads": _uploads,
    }
)
"""Folders whose objects belong to a row. ``derived`` is none: what pruning takes away from a base
is found again by its name and belongs to nobody."""
