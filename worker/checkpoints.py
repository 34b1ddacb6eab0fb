"""Checkpoints of one attempt: bytes in storage first, then a row through the journal.

A checkpoint is two objects. The delta is stored by its digest as that of an adapter is, so that it
can be answered with, and published by a row alone. The state beside it is what only training needs.

The name of a state carries the attempt, so that a stale attempt cannot overwrite what a newer one
wrote; the row is fenced. A checkpoint that cannot be written costs time after a crash, not the job:
training goes on and its owner is told.
"""

import hashlib
import logging
from collections.abc import Sequence
from typing import Any

from core.db import Database, Session, checkpoints
from core.db.models import Checkpoint
from core.db.objects import remove_unneeded
from core.errors import NotFound, ServiceError
from core.storage import ObjectStore, delta_key, remove_objects
from core.storage.keys import checkpoint_key
from peft_engine.errors import EngineError
from worker.deltas import describe_delta
from worker.engine import TrainedDelta, TrainerEngine
from worker.failures import explain
from worker.journal import JobKey, Journal

_log = logging.getLogger(__name__)

# The newest may have been cut short by the very fault that it should help against.
KEEP = 2

# A worker deletes the checkpoints of its job within moments of its end.
_ABANDONED_SECONDS = 60.0

# How long a step may wait for the row of a checkpoint; in order it takes milliseconds.
_ROW_SECONDS = 1.0


class JobCheckpoints:
    """Fills ``worker.engine.Checkpoints`` for one attempt; used by the training thread."""

    def __init__(
        self,
        database: Database,
        store: ObjectStore,
        engine: TrainerEngine,
        journal: Journal,
        key: JobKey,
    ) -> None:
        """Bind the checkpoints of a job to an attempt.

        Args:
            database: Where the rows of all attempts stand.
            store: Where the bytes lie.
            engine: Reads and writes deltas.
            journal: Writes the rows of this attempt.
            key: The attempt.
        """
        self._database = database
        self._store = store
        self._engine = engine
        self._journal = journal
        self._key = key

    def save(self, step: int, state: bytes, delta: TrainedDelta) -> None:
        """Keep state and delta after a step.

        Args:
            step: Optimizer steps done.
            state: What the engine needs to go on, beside the delta.
            delta: What the steps so far have made.
        """
        self._journal.check()
        key = checkpoint_key(self._key.job_id, self._key.attempt, step)
        try:
            # The state first: one without a row goes with the job, a delta only as an orphan.
            stored = self._store.put_bytes(key, state)
            told = self._store_delta(delta)
        except ServiceError as error:
            _log.warning("checkpoint %s not written: %s", key, error)
            reason = explain(error).code
            self._journal.log(
                f"The checkpoint at step {step} could not be kept ({reason}); training goes on.",
                level="warning",
            )
            return
        gone: list[Checkpoint] = []

        def write(session: Session) -> None:
            row = checkpoints.add(
                session,
                job_id=self._key.job_id,
                tenant_id=self._key.tenant_id,
                attempt=self._key.attempt,
                step=step,
                key=key,
                bytes=stored.bytes,
                sha256=stored.sha256,
                delta=told,
            )
            if not self._is_there(told["key"]):
                # An equal delta was removed since: the checkpoints before this one stay.
                checkpoints.forget(session, row.tenant_id, [row.id])
                return
            gone[:] = checkpoints.prune(session, self._key.tenant_id, self._key.job_id, keep=KEEP)

        self._journal.add(write, after=lambda: remove_bytes(self._database, self._store, gone))
        # What is saved should count from now on; a database that is away is not waited for.
        self._journal.flush(_ROW_SECONDS)

    def _store_delta(self, delta: TrainedDelta) -> dict[str, Any]:
        """Put a delta where its digest says; what is told of it."""
        data, key = self._engine.save_delta(delta), delta_key(delta.digest)
        self._store.put_new(key, data)
        return describe_delta(delta, key=key, size_bytes=len(data))

    def _is_there(self, key: str) -> bool:
        """Whether storage has an object; one that cannot be asked now had it a moment ago."""
        try:
            return self._store.exists(key)
        except ServiceError:
            return True

    def latest(self) -> tuple[int, bytes, TrainedDelta | None] | None:
        """Return the furthest state and delta that are whole, of any attempt, or None.

        ``Unavailable`` goes through: steps are not done again for want of a storage that comes
        back.
        """
        with self._database.read() as session:
            rows = checkpoints.list_newest(session, self._key.tenant_id, self._key.job_id)
        for row in rows:
            try:
                return row.step, self._read_state(row), self._read_delta(row)
            except (NotFound, EngineError) as error:
                _log.warning("checkpoint %s cannot be read: %s", row.key, error)
            self._journal.log(
                f"The checkpoint at step {row.step} is damaged; an earlier one is used.",
                level="warning",
            )
            self._forget(row)
        return None

    def _read_state(self, row: Checkpoint) -> bytes:
        """The state.

        Raises:
            NotFound: There is none, or another.
        """
        state = self._store.get_bytes(row.key)
        if hashlib.sha256(state).hexdigest() != row.sha256:
            raise NotFound("it holds other bytes", code="object_not_found")
        return state

    def _read_delta(self, row: Checkpoint) -> TrainedDelta | None:
        """The delta, if it lies beside the state.

        Raises:
            NotFound: There is none, or another. ``EngineError`` goes through for what is none.
        """
        if row.delta is None or row.delta_key is None:
            return None
        delta = self._engine.load_delta(self._store.get_bytes(row.delta_key))
        if delta.digest != row.delta["digest"]:
            raise NotFound("it holds another delta", code="object_not_found")
        return delta

    def _forget(self, row: Checkpoint) -> None:
        """The furthest are kept: one that is damaged would take the place of those that follow."""
        self._journal.add(
            lambda session: checkpoints.forget(session, row.tenant_id, [row.id]),
            after=lambda: remove_bytes(self._database, self._store, [row]),
        )


def remove_bytes(database: Database, store: ObjectStore, gone: Sequence[Checkpoint]) -> None:
    """Remove the bytes of checkpoints whose rows are gone, but for deltas that others need.

    Args:
        database: Where the rows stand; no transaction is open.
        store: Where the bytes lie.
        gone: The checkpoints.
    """
    remove_objects(store, [row.key for row in gone])
    for key in {row.delta_key for row in gone if row.delta_key is not None}:
        try:
            remove_unneeded(database, key, store.delete)
        except ServiceError as error:
            _log.warning("%s is left to be removed as an orphan: %s", key, error)


def delete_checkpoints(database: Database, store: ObjectStore, tenant_id: str, job_id: str) -> None:
    """Delete all checkpoints of a job, bytes without a row too.

    Args:
        database: Where the rows stand.
        store: Where the bytes lie.
        tenant_id: The job's tenant.
        job_id: A job that is over.
    """
    with database.write() as session:
        gone = checkpoints.prune(session, tenant_id, job_id, keep=0)
    remove_bytes(database, store, gone)
    remove_objects(store, list(store.list(f"checkpoints/{job_id}")))


def delete_abandoned(database: Database, store: ObjectStore) -> None:
    """Delete the checkpoints of jobs that are over.

    They were cancelled while no worker had them, or their worker could not delete them itself.

    Args:
        database: Where the rows stand.
        store: Where the bytes lie.
    """
    with database.read() as session:
        found = checkpoints.list_abandoned(session, older_than_seconds=_ABANDONED_SECONDS)
    for tenant_id, job_id in found:
        delete_checkpoints(database, store, tenant_id, job_id)
        _log.info("checkpoints of %s deleted: it is over", job_id)
