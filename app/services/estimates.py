"""Estimates: check a wish, make the row, show it."""

from collections.abc import Sequence

from app.schemas.estimates import (
    EstimateAnswer,
    EstimateError,
    EstimateResult,
    JobEstimate,
)
from app.services import jobs
from app.services.measuring import send
from app.services.parts import Parts, Unit
from core.db import Session, estimates
from core.db.models import Estimate, Job
from core.errors import BadInput, Conflict
from core.states import DatasetStatus, EstimateStatus
from peft_engine.configs import JobSpec
from peft_engine.configs.measurable import explain_unmeasured


def create(unit: Unit, *, parts: Parts, tenant_id: str, spec: JobSpec) -> Estimate:
    """Make an estimate of a job that could be made now.

    Args:
        unit: The transaction.
        parts: The known base models, and the queue that is told after the commit.
        tenant_id: The owner.
        spec: What would be trained.

    Returns:
        The estimate, queued.

    Raises:
        Conflict: The data set is still being validated.

    ``BadInput``, ``NotFound`` and ``Conflict`` go through where the job could not be made or is not
    measured (``estimate_unavailable``); ``TooMany`` where the owner has too many estimates.
    """
    _check_measurable(spec)
    dataset, asked = jobs.check(
        unit.session, settings=parts.settings, tenant_id=tenant_id, spec=spec
    )
    if dataset.status is not DatasetStatus.READY:
        raise Conflict(
            f"the data set {dataset.id} is still being validated; ask again when it is ready",
            code="dataset_not_ready",
            param="dataset_id",
        )
    row = estimates.create(unit.session, tenant_id=tenant_id, dataset_id=dataset.id, spec=asked)
    send(unit, parts, row.id)
    return row


def _check_measurable(spec: JobSpec) -> None:
    """Refuse at once what a worker would refuse.

    Raises:
        BadInput: It would.
    """
    if (why := explain_unmeasured(spec)) is not None:
        raise BadInput(why.message, code="estimate_unavailable", param=why.param)


def as_answer(session: Session, row: Estimate) -> EstimateAnswer:
    """Shape a row for the user.

    Args:
        session: To count the queue with.
        row: The estimate.

    Returns:
        What is shown of it.
    """
    return as_answers(session, [row])[0]


def as_answers(session: Session, rows: Sequence[Estimate]) -> list[EstimateAnswer]:
    """Shape the rows of a list.

    Args:
        session: To count the queue with.
        rows: The estimates.

    Returns:
        What is shown of them, in their order.
    """
    positions = estimates.queue_positions(session, rows)
    return [
        EstimateAnswer(
            **_shape(row).model_dump(),
            queue_position=positions.get(row.id),
            dataset_id=row.dataset_id,
            base_model=row.spec["base_model"],
            task=row.spec.get("task"),
            spec=row.spec,
            attempt=row.attempt,
            job_id=row.job_id,
            created_at=row.created_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
        )
        for row in rows
    ]


def of_jobs(session: Session, rows: Sequence[Job]) -> dict[str, JobEstimate]:
    """What is known of jobs that were made to wait for their start.

    Args:
        session: To read with.
        rows: Any jobs.

    Returns:
        By job, for those that have an estimate.
    """
    held = [job.id for job in rows if not job.spec.get("auto_start", True)]
    return {name: _shape(row) for name, row in estimates.find_of_jobs(session, held).items()}


def _shape(row: Estimate) -> JobEstimate:
    reason = row.reason
    if row.status is EstimateStatus.QUEUED and reason is None:
        reason = "waits for a worker between jobs"
    result, error = row.result, row.error
    return JobEstimate(
        id=row.id,
        status=row.status,
        reason=reason,
        result=EstimateResult.model_validate(result, extra="ignore") if result else None,
        error=EstimateError.model_validate(error, extra="ignore") if error else None,
    )
