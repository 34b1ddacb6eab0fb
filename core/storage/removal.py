"""Objects that nothing needs any more."""

import logging
from collections.abc import Iterable

from core.errors import ServiceError
from core.storage.store import ObjectStore

_log = logging.getLogger(__name__)


def remove_objects(store: ObjectStore, keys: Iterable[str]) -> None:
    """Remove objects, whatever becomes of one: what was asked for is done all the same.

    Args:
        store: Where they are.
        keys: Which ones; what storage refuses to remove now is an orphan later.
    """
    for key in keys:
        try:
            store.delete(key)
        except ServiceError as error:
            _log.warning("%s is left to be removed as an orphan: %s", key, error)
