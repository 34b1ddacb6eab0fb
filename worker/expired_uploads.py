"""Uploads in parts that nobody completed in time: they end, and their parts go."""

import logging

from core.db import Database, uploads
from core.storage import ObjectStore, part_key, remove_objects

_log = logging.getLogger(__name__)


def end_expired_uploads(database: Database, store: ObjectStore) -> None:
    """End uploads that were left open; any process may do so at any time.

    Args:
        database: Where they stand.
        store: Where their parts are; what it does not remove now is an orphan later.
    """
    with database.write() as session:
        expired = uploads.expire(session)
    for upload_id, part_ids in expired.items():
        _log.info("%s has expired, with %d parts", upload_id, len(part_ids))
        remove_objects(store, [part_key(upload_id, part_id) for part_id in part_ids])
