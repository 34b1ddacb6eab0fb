"""The records of a job's data set, read from storage as its row says."""

from collections.abc import Callable, Mapping

from core.db import Database, datasets
from core.db.models import Dataset
from core.errors import Unavailable
from core.storage import ObjectStore
from peft_engine.configs import JobSpec
from worker.publishing import patiently
from worker.splits import Record, read_split


def read_records(
    database: Database, store: ObjectStore, spec: JobSpec, *, tick: Callable[[], None]
) -> Mapping[str, list[Record]]:
    """Read the splits that a job looks at.

    Args:
        database: Where the data set's row stands.
        store: Where its bytes lie.
        spec: The job; one that leaves the test split alone does not even read it.
        tick: Called after every piece.

    Returns:
        Canonical records by split.

    Raises:
        Unavailable: The row is gone.
        Conflict: The bytes are not those that were stored.
    """  # noqa: DOC502  raised in read_split

    def read_row() -> Dataset | None:
        with database.read() as session:
            return datasets.get_for_worker(session, spec.dataset_id)

    dataset = patiently(read_row)
    if dataset is None:
        raise Unavailable("The data set's row is missing.", code="storage_unavailable")
    return {
        split: read_split(store, entry["key"], sha256=entry["sha256"], tick=tick)
        for split, entry in dataset.splits.items()
        if split != "test" or spec.evaluate_test
    }
