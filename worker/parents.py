"""The delta that a job continues from, read from storage and checked against its digest."""

from core.db import Database, adapters
from core.db.models import Adapter
from core.errors import NotFound
from core.storage import ObjectStore
from peft_engine.errors import DeltaError
from worker.engine import TrainedDelta, TrainerEngine
from worker.publishing import patiently


def read_parent(
    database: Database, store: ObjectStore, engine: TrainerEngine, adapter_id: str
) -> TrainedDelta:
    """Read the parent of a job.

    Args:
        database: Where the adapter's row stands.
        store: Where its bytes lie.
        engine: Reads the file.
        adapter_id: ``adp_…``, as the api stored it in the job.

    Returns:
        The delta.

    Raises:
        NotFound: The adapter was deleted after the job was made.
        DeltaError: The stored bytes are not the adapter's.

    Storage that does not answer raises what it raises: another attempt may find it back.
    """  # noqa: DOC502  made once, raised in three places

    def read_row() -> Adapter | None:
        with database.read() as session:
            return adapters.get_for_worker(session, adapter_id)

    row = patiently(read_row)
    if row is None:
        raise NotFound(
            f"The adapter {adapter_id} that this job continues from has been deleted.",
            code="adapter_not_found",
            param="parent_adapter_id",
        )
    damaged = DeltaError(
        f"The stored adapter {row.name}@{row.version} does not match its digest; "
        "continue from another version, or train it again.",
        code="adapter_corrupt",
        param="parent_adapter_id",
    )
    try:
        delta = engine.load_delta(store.get_bytes(row.key))
    except NotFound as error:  # the row is there and its bytes are not
        raise damaged from error
    except DeltaError as error:
        raise damaged from error
    if delta.digest != row.digest:
        raise damaged
    return delta
