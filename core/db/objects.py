"""Which stored objects a row still speaks for; others are leftovers of something cut short.

Knows the keys of ``core.storage.keys`` by their folders and nothing else of storage.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db.models import Adapter, Checkpoint, Dataset
from core.states import DatasetStatus

_QUERY_KEYS = 500
"""Keys of one query; a database takes some thousand parameters."""


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
    query = sa.select(Adapter.key).where(Adapter.key.in_(keys), Adapter.deleted_at.is_(None))
    return set(session.scalars(query))


def _checkpoints(session: Session, keys: Sequence[str]) -> set[str]:
    return set(session.scalars(sa.select(Checkpoint.key).where(Checkpoint.key.in_(keys))))


def _splits(session: Session, keys: Sequence[str]) -> set[str]:
    return _of_datasets(session, keys)


def _uploads(session: Session, keys: Sequence[str]) -> set[str]:
    # raw bytes are of use until the validation has ended; those of an import never have a row
    return _of_datasets(session, keys, Dataset.status == DatasetStatus.VALIDATING)


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
        "checkpoints": _checkpoints,
        "datasets": _splits,
        "deltas": _deltas,
        "uploads": _uploads,
    }
)
"""Folders whose objects belong to a row. ``derived`` is none: what pruning takes away from a base
is found again by its name and belongs to nobody."""
