"""Objects that no row speaks for: found by their age, and removed.

Bytes are stored before their row is written, and removed after it is gone: a process that is killed
in between leaves an object that nobody would ever remove. What is under way is younger than
``ORPHANED_SECONDS``; bytes that are put again count as new.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from core.db import Database
from core.db.objects import FOLDERS, find_spoken_for, remove_unneeded
from core.storage import ObjectStore

_log = logging.getLogger(__name__)

ORPHANED_SECONDS = 24 * 3600.0
"""As for abandoned folders: no upload, import or publication rests so long before its row."""


@dataclass(frozen=True)
class Orphans:
    """What was found.

    Attributes:
        keys: Objects without a row.
        owned: How many objects as old have one.
    """

    keys: tuple[str, ...]
    owned: int

    @property
    def is_plausible(self) -> bool:
        """Whether crashes explain them: more leftovers than objects is another database's store."""
        return len(self.keys) <= self.owned


def find_orphans(
    database: Database, store: ObjectStore, *, older_than_seconds: float = ORPHANED_SECONDS
) -> Orphans:
    """Find the objects that no row speaks for; changes nothing.

    Args:
        database: Where the rows stand.
        store: Where the bytes lie.
        older_than_seconds: Younger ones may get their row yet.

    Returns:
        Their keys by folder, sorted.
    """
    found: list[str] = []
    owned = 0
    for folder in FOLDERS:
        old = list(store.list_older(folder, seconds=older_than_seconds))
        with database.read() as session:
            needed = find_spoken_for(session, folder, old)
        owned += len(needed)
        found += [key for key in old if key not in needed]
    return Orphans(tuple(found), owned)


def remove_orphans(
    database: Database, store: ObjectStore, *, older_than_seconds: float = ORPHANED_SECONDS
) -> Orphans:
    """Remove the objects that no row speaks for, unless they are too many to be leftovers.

    Args:
        database: Where the rows stand.
        store: Where the bytes lie.
        older_than_seconds: As for ``find_orphans``.

    Returns:
        What was found; nothing was removed when it is not plausible.
    """
    found = find_orphans(database, store, older_than_seconds=older_than_seconds)
    if not found.is_plausible:
        _log.warning(
            "%d objects have no row and only %d have one, so none was removed: is this the "
            "database of this store? `tunery orphans` lists them",
            len(found.keys),
            found.owned,
        )
    elif found.keys:
        delete_orphans(database, store, found.keys, older_than_seconds=older_than_seconds)
    return found


def delete_orphans(
    database: Database, store: ObjectStore, keys: Sequence[str], *, older_than_seconds: float
) -> int:
    """Delete objects that are orphans still.

    Args:
        database: Asked once more, key by key: a job may publish the very same delta meanwhile.
        store: Where the bytes lie; it looks at the age once more.
        keys: From ``find_orphans``.
        older_than_seconds: As there.

    Returns:
        How many are gone.
    """
    remove = partial(store.delete_older, seconds=older_than_seconds)
    gone = [key for key in keys if remove_unneeded(database, key, remove)]
    _log.info("removed %d objects without a row: %s", len(gone), ", ".join(gone))
    return len(gone)
