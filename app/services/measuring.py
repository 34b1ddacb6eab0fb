"""Having jobs measured: the message to the workers, and the estimate of a job that is held."""

from app.services.parts import Parts, Unit
from core.db import estimates
from core.db.models import Estimate, Job


def measure_job(unit: Unit, *, parts: Parts, job: Job) -> Estimate:
    """Have the job measured that waits for its start.

    Args:
        unit: The transaction that made the job.
        parts: The queue that is told after the commit.
        job: The job.

    Returns:
        The estimate.
    """
    row = estimates.create(
        unit.session,
        tenant_id=job.tenant_id,
        dataset_id=job.dataset_id,
        spec=job.spec,
        job_id=job.id,
    )
    send(unit, parts, row.id)
    return row


def send(unit: Unit, parts: Parts, estimate_id: str) -> None:
    """Tell the workers after the commit. Without a broker the row stays, and the sweep sends it.

    Args:
        unit: The transaction.
        parts: The queue.
        estimate_id: Which estimate.
    """

    def tell() -> None:
        if not parts.queue.send_estimate(estimate_id):
            with parts.database.write() as session:
                estimates.mark_unsent(session, [estimate_id])

    unit.then(tell)
