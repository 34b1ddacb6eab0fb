"""The supervisor's writes to an estimate's row, each one fenced transaction.

Fills ``worker.measuring.Rows`` over ``core.db``. Knows no processes.
"""

from core.db import Database, estimates
from core.states import EstimateStatus
from worker.heartbeat import Fenced
from worker.measuring import ClaimedEstimate
from worker.protocol import Failure
from worker.reachable import reachable


class EstimateRows:
    """The rows of the estimates, as the supervisor of one worker may change them."""

    def __init__(
        self, database: Database, *, owner: str, lease_seconds: float, outage_seconds: float
    ) -> None:
        """Bind to a database.

        Args:
            database: Where the estimates are.
            owner: Name of this worker, for people.
            lease_seconds: Length of a lease.
            outage_seconds: How long an estimate that met an outage waits.
        """
        self._database = database
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._outage_seconds = outage_seconds

    def claim(self, estimate_id: str) -> ClaimedEstimate | None:
        """Take the estimate if it is to be had."""
        with reachable(), self._database.write() as session:
            claim = estimates.claim(
                session, estimate_id, owner=self._owner, lease_seconds=self._lease_seconds
            )
        if claim is None:
            return None
        may_retry = claim.losses + 1 < estimates.MOST_LOSSES
        return ClaimedEstimate(estimate_id, claim.attempt, may_retry=may_retry)

    def beat(self, own: ClaimedEstimate) -> str | None:
        """Renew the lease; return the owner's wish.

        Raises:
            Fenced: The attempt does not own the estimate any more.
        """
        with reachable(), self._database.write() as session:
            if estimates.beat(
                session, own.estimate_id, own.attempt, lease_seconds=self._lease_seconds
            ):
                return estimates.read_wish(session, own.estimate_id, own.attempt)
            row = estimates.get_for_worker(session, own.estimate_id)
        if row is not None and (row.attempt, row.status) == (own.attempt, EstimateStatus.SUCCEEDED):
            # Our own child has written and is about to say so: it is not to be killed for it.
            return None
        raise Fenced(own.estimate_id)

    def read_wish(self, own: ClaimedEstimate) -> str | None:
        """Read the owner's wish and nothing else."""
        with reachable(), self._database.read() as session:
            return estimates.read_wish(session, own.estimate_id, own.attempt)

    def finish_cancelled(self, own: ClaimedEstimate) -> bool:
        """The estimate is over because its owner cancelled it."""
        with reachable(), self._database.write() as session:
            return estimates.finish(session, own.estimate_id, own.attempt, EstimateStatus.CANCELLED)

    def finish_failed(self, own: ClaimedEstimate, failure: Failure) -> bool:
        """The estimate is over and has an error."""
        with reachable(), self._database.write() as session:
            return estimates.finish(
                session,
                own.estimate_id,
                own.attempt,
                EstimateStatus.FAILED,
                error=failure.as_job_error(),
            )

    def release_drained(self, own: ClaimedEstimate) -> bool:
        """Back to the queue because this worker shuts down; counts as no loss."""
        with reachable(), self._database.write() as session:
            return estimates.release(
                session, own.estimate_id, own.attempt, reason="drain", is_lost=False
            )

    def release_failed(self, own: ClaimedEstimate, failure: Failure) -> bool:
        """Back to the queue after a failure that another attempt may not meet."""
        with reachable(), self._database.write() as session:
            return estimates.release(
                session,
                own.estimate_id,
                own.attempt,
                reason=failure.code,
                is_lost=True,
                wait_seconds=self._outage_seconds if failure.outage else None,
            )
