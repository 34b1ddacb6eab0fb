"""Checkpoints of one attempt: bytes in storage first, then a row through the journal.

The name of an object carries the attempt, so that a stale attempt cannot overwrite what a newer one
wrote; the row is fenced. A checkpoint that cannot be written costs time after a crash, not the job:
training goes on and its owner is told.
"""

import hashlib
import logging

from core.db import Database, Session, checkpoints
from core.db.models import Checkpoint
from core.errors import NotFound, ServiceError
from core.storage import ObjectStore, remove_objects
from core.storage.keys import checkpoint_key
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
        self, database: Database, store: ObjectStore, journal: Journal, key: JobKey
    ) -> None:
        """Bind the checkpoints of a job to an attempt.

        Args:
            database: Where the rows of all attempts stand.
            store: Where the bytes lie.
            journal: Writes the rows of this attempt.
            key: The attempt.
        """
        self._database = database
        self._store = store
        self._journal = journal
        self._key = key

    def save(self, step: int, data: bytes) -> None:
        """Keep the state after a step.

        Args:
            step: Optimizer steps done.
            data: What the engine needs to go on.
        """
        self._journal.check()
        key = checkpoint_key(self._key.job_id, self._key.attempt, step)
        try:
            self._store.put_bytes(key, data)
        except ServiceError as error:
            _log.warning("checkpoint %s not written: %s", key, error)
            reason = explain(error).code
            self._journal.log(
                f"The checkpoint at step {step} could not be kept ({reason}); training goes on.",
                level="warning",
            )
            return
        sha256 = hashlib.sha256(data).hexdigest()
        superseded: list[str] = []

        def write(session: Session) -> None:
            checkpoints.add(
                session,
                job_id=self._key.job_id,
                tenant_id=self._key.tenant_id,
                attempt=self._key.attempt,
                step=step,
                key=key,
                bytes=len(data),
                sha256=sha256,
            )
            superseded[:] = checkpoints.prune(
                session, self._key.tenant_id, self._key.job_id, keep=KEEP
            )

        self._journal.add(write, after=lambda: remove_objects(self._store, superseded))
        # What is saved should count from now on; a database that is away is not waited for.
        self._journal.flush(_ROW_SECONDS)

    def latest(self) -> tuple[int, bytes] | None:
        """Return the furthest state that is whole, of any attempt, or None.

        ``Unavailable`` goes through: steps are not done again for want of a storage that comes
        back.
        """
        with self._database.read() as session:
            rows = checkpoints.list_newest(session, self._key.tenant_id, self._key.job_id)
        for row in rows:
            try:
                data = self._store.get_bytes(row.key)
            except NotFound as error:
                _log.warning("checkpoint %s cannot be read: %s", row.key, error)
                data = b""
            if hashlib.sha256(data).hexdigest() == row.sha256:
                return row.step, data
            self._journal.log(
                f"The checkpoint at step {row.step} is damaged; an earlier one is used.",
                level="warning",
            )
            self._forget(row)
        return None

    def _forget(self, row: Checkpoint) -> None:
        """The furthest are kept: one that is damaged would take the place of those that follow."""
        self._journal.add(
            lambda session: checkpoints.forget(session, row.tenant_id, [row.id]),
            after=lambda: remove_objects(self._store, [row.key]),
        )


def delete_checkpoints(database: Database, store: ObjectStore, tenant_id: str, job_id: str) -> None:
    """Delete all checkpoints of a job, bytes without a row too.

    Args:
        database: Where the rows stand.
        store: Where the bytes lie.
        tenant_id: The job's tenant.
        job_id: A job that is over.
    """
    with database.write() as session:
        checkpoints.prune(session, tenant_id, job_id, keep=0)
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
