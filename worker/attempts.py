"""The supervisor's writes to a job's row and story, each one fenced transaction.

Fills ``worker.training.Attempts`` over ``core.db``. Knows no processes.
"""

import logging
from typing import Any

from core.db import Database, events, jobs
from core.db.resending import wait_after_outage
from core.errors import ServiceError
from core.states import JobStatus
from core.storage import ObjectStore
from worker.checkpoints import delete_checkpoints
from worker.heartbeat import Fenced
from worker.protocol import Failure
from worker.reachable import reachable
from worker.training import ClaimedJob

_log = logging.getLogger(__name__)


class JobAttempts:
    """The rows of the jobs, as the supervisor of one worker may change them."""

    def __init__(
        self,
        database: Database,
        store: ObjectStore,
        *,
        owner: str,
        lease_seconds: float,
        outage_seconds: float,
    ) -> None:
        """Bind to a database.

        Args:
            database: Where the jobs are.
            store: Where their checkpoints are.
            owner: Name of this worker, for people.
            lease_seconds: Length of a lease.
            outage_seconds: How long a job that met an outage waits, the first time.
        """
        self._database = database
        self._store = store
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._outage_seconds = outage_seconds

    def claim(self, job_id: str) -> ClaimedJob | None:
        """Take the job if it is to be had."""
        with reachable(), self._database.write() as session:
            claim = jobs.claim(
                session, job_id, owner=self._owner, lease_seconds=self._lease_seconds
            )
            row = jobs.get_for_worker(session, job_id)
            if claim is None or row is None:
                return None
            return ClaimedJob(
                job_id=job_id,
                tenant_id=claim.tenant_id,
                attempt=claim.attempt,
                max_attempts=row.max_attempts,
                priority=row.priority,
                sweep_id=row.sweep_id,
            )

    def claim_beside(self, job: ClaimedJob) -> ClaimedJob | None:
        """Take the next job of the queue if it may train beside this one."""
        with reachable(), self._database.read() as session:
            found = jobs.find_beside(session, job.job_id)
        return None if found is None else self.claim(found)

    def beat(self, job: ClaimedJob) -> str | None:
        """Renew the lease; return the owner's wish.

        Raises:
            Fenced: The attempt does not own the job any more.
        """
        with reachable(), self._database.write() as session:
            beat = jobs.beat(session, job.job_id, job.attempt, lease_seconds=self._lease_seconds)
            if beat is not None:
                return beat.control
            row = jobs.get_for_worker(session, job.job_id)
        if row is not None and (row.attempt, row.status) == (job.attempt, JobStatus.SUCCEEDED):
            # Our own child has published and is about to say so: it is not to be killed for it.
            return None
        raise Fenced(job.job_id)

    def read_wish(self, job: ClaimedJob) -> str | None:
        """Read the owner's wish and nothing else."""
        with reachable(), self._database.read() as session:
            return jobs.read_wish(session, job.job_id, job.attempt)

    def finish_cancelled(self, job: ClaimedJob) -> bool:
        """The job is over because its owner cancelled it."""
        return self._finish(job, JobStatus.CANCELLED)

    def finish_paused(self, job: ClaimedJob) -> bool:
        """The job rests until its owner resumes it."""
        return self._finish(job, JobStatus.PAUSED)

    def finish_failed(self, job: ClaimedJob, failure: Failure) -> bool:
        """The job is over and has an error."""
        return self._finish(job, JobStatus.FAILED, error=failure.as_job_error())

    def release_drained(self, job: ClaimedJob) -> bool:
        """Back to the queue because this worker shuts down; costs the job no attempt."""
        with reachable(), self._database.write() as session:
            return jobs.release(session, job.job_id, job.attempt, reason="drain")

    def release_failed(self, job: ClaimedJob, failure: Failure) -> bool:
        """Back to the queue after a failure that another attempt may not meet."""
        wait_seconds = self._wait_of(job, failure)
        message = f"Attempt {job.attempt} of {job.max_attempts}: {failure.message}"
        if wait_seconds is not None:
            message = f"{message}; the next one comes in {wait_seconds:.0f} s"
        with reachable(), self._database.write() as session:
            if not jobs.hold(session, job.job_id, job.attempt):
                return False
            events.append(
                session,
                job_id=job.job_id,
                tenant_id=job.tenant_id,
                attempt=job.attempt,
                event="log",
                level="warning",
                message=message,
                data={"code": failure.code},
            )
            return jobs.release(
                session,
                job.job_id,
                job.attempt,
                reason=failure.code,
                counted=True,
                wait_seconds=wait_seconds,
            )

    def forget_checkpoints(self, job: ClaimedJob) -> None:
        """Delete the checkpoints of a job that is over; what cannot be deleted now stays."""
        try:
            delete_checkpoints(self._database, self._store, job.tenant_id, job.job_id)
        except (ServiceError, OSError) as error:
            _log.warning("checkpoints of %s not deleted: %s", job.job_id, error)

    def _wait_of(self, job: ClaimedJob, failure: Failure) -> float | None:
        # At once, all attempts would be gone before what is away has come back.
        return wait_after_outage(job.attempt, self._outage_seconds) if failure.outage else None

    def _finish(
        self,
        job: ClaimedJob,
        status: JobStatus,
        **values: Any,
    ) -> bool:
        with reachable(), self._database.write() as session:
            return jobs.finish(session, job.job_id, job.attempt, status, **values)
