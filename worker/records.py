"""The records of a job's data set, read from storage as its row says."""

from collections.abc import Callable, Mapping

from core.db import Database, datasets
from core.db.models import Dataset
from core.errors import Unavailable
from core.storage import ObjectStore
from worker.publishing import patiently
from worker.splits import Record, read_split


def read_records(
    database: Database, store: ObjectStore, dataset_id: str, *, tick: Callable[[], None]
) -> Mapping[str, list[Record]]:
    """Read all splits of a data set.

    Args:
        database: Where its row stands.
        store: Where its bytes lie.
        dataset_id: ``ds_…``.
        tick: Called after every piece.

    Returns:
        Canonical records by split.

    Raises:
        Unavailable: The row is gone.
        Conflict: The bytes are not those that were stored.
    """  # noqa: DOC502  raised in read_split

    def read_row() -> Dataset | None:
        with database.read() as session:
            return datasets.get_for_worker(session, dataset_id)

    dataset = patiently(read_row)
    if dataset is None:
        raise Unavailable("The data set's row is missing.", code="storage_unavailable")
    return {
        split: read_split(store, entry["key"], sha256=entry["sha256"], tick=tick)
        for split, entry in dataset.splits.items()
    }
