"""Sweeps: check a wish, make the row, have it gone on with.

What follows is the housekeeping worker's (``worker.sweeps``); its message goes out after the
commit, and only as a hint.
"""

from typing import Any

from app.schemas.shared import refuse_unstorable
from app.services import jobs, sweep_checks
from app.services.parts import Parts, Unit
from core.db import Session, datasets, names, sweeps, trials
from core.db.idempotency import digest_request, find_by_key
from core.db.models import Dataset, Sweep
from core.errors import BadInput, Conflict, NotFound, ServiceError
from core.queue import ADVANCE_TASK
from core.settings import Settings
from core.states import DatasetStatus
from peft_engine.configs import JobSpec, SweepSpec
from peft_engine.configs.search import build_job
from peft_engine.errors import EngineError


def check(spec: SweepSpec) -> None:
    """Refuse a sweep that is wrong whatever its data set is; asks the database for nothing.

    Args:
        spec: What to try out. ``BadInput`` goes through where no jobs can be made of it, and
            ``details`` lists every problem.
    """
    # not as JSON: half of a surrogate pair has no bytes
    refuse_unstorable(spec.model_dump())
    sweep_checks.check(spec)


def create(
    unit: Unit,
    *,
    parts: Parts,
    tenant_id: str,
    spec: SweepSpec,
    idempotency_key: str | None,
) -> Sweep:
    """Make a sweep, unless the same wish has made it already.

    Args:
        unit: The transaction.
        parts: The known base models, and the queue that is told after the commit.
        tenant_id: The owner.
        spec: What to try out, checked by itself (``check``).
        idempotency_key: The caller's key; without one an equal body within two minutes is the same
            wish.

    Returns:
        The sweep. ``BadInput`` goes through where a field is none of the data set's task;
        ``NotFound`` and ``Conflict`` as from ``jobs.create``.
    """
    asked = spec.model_dump(mode="json")
    if idempotency_key is not None:
        known = find_by_key(
            unit.session,
            Sweep,
            tenant_id=tenant_id,
            key=idempotency_key,
            request_digest=digest_request(asked),
        )
        if known is not None:
            return known
    session = unit.session
    dataset = _hold_dataset(session, tenant_id, str(spec.job["dataset_id"]))
    sweep_checks.check_fields(spec, task=dataset.task)
    settled = _settle(session, tenant_id, spec, dataset, parts.settings)
    decided = settled.model_dump(mode="json")
    if idempotency_key is None:
        # A name that means a newer parent by now is another wish; a key stands for the body alone.
        asked = decided
    name = str(settled.job["adapter_name"])
    for own in (name, trials.name_adapters(name)):
        names.hold_for_adapter(session, tenant_id, own)
    sweep, is_new = sweeps.create_once(
        session,
        tenant_id=tenant_id,
        dataset_id=dataset.id,
        name=spec.name or name,
        spec=decided,
        idempotency_key=idempotency_key,
        request_digest=digest_request(asked),
    )
    if is_new:
        _send(unit, parts, sweep.id)
    return sweep


def cancel(unit: Unit, *, parts: Parts, tenant_id: str, sweep_id: str) -> Sweep:
    """Cancel a sweep and all of its jobs.

    Args:
        unit: The transaction.
        parts: The queue that is told after the commit.
        tenant_id: Who asks.
        sweep_id: Which one.

    Returns:
        The sweep, ``cancelling``. ``NotFound`` goes through, and ``Conflict`` for one that has
        ended.
    """
    sweep = sweeps.request_cancel(unit.session, tenant_id, sweep_id)
    _send(unit, parts, sweep.id)
    # jobs that waited have ended here
    unit.then(lambda: parts.queue.send_deliveries(sweep_id))
    return sweep


def _hold_dataset(session: Session, tenant_id: str, dataset_id: str) -> Dataset:
    """The data set, which has rows to choose by.

    Raises:
        NotFound: The tenant has none such.
        Conflict: It is not ready.
        BadInput: It has no validation rows.
    """
    try:
        dataset = datasets.hold(session, tenant_id, dataset_id)
    except NotFound as error:
        raise NotFound(error.message, code=error.code, param="job.dataset_id") from error
    if dataset.status != DatasetStatus.READY:
        raise Conflict(
            f"the data set {dataset.id} is {dataset.status}; make the sweep when it is ready",
            code="dataset_not_ready",
            param="job.dataset_id",
        )
    if not dataset.splits.get("validation", {}).get("rows"):
        raise BadInput(
            f"the data set {dataset.id} has no validation rows, by which a trial could be chosen",
            code="no_validation_rows",
            param="job.dataset_id",
        )
    return dataset


def _settle(
    session: Session, tenant_id: str, spec: SweepSpec, dataset: Dataset, settings: Settings
) -> SweepSpec:
    """The sweep with its references decided; a job that cannot be trained is refused now."""
    job, task = _settle_job(session, tenant_id, JobSpec.model_validate(spec.job), dataset, settings)
    decided: dict[str, Any] = {
        "task": task,
        "adapter_name": job.adapter_name or jobs.adapter_name(dataset.name, job.base_model),
    }
    if job.parent_adapter_id is not None:
        methods = [method.model_dump(mode="json") for method in job.method]
        decided |= {"parent_adapter_id": job.parent_adapter_id, "method": methods}
    settled = spec.model_copy(update={"job": {**spec.job, **decided}})
    for point in sweep_checks.sample_points(settled):
        _settle_job(session, tenant_id, build_job(settled, point), dataset, settings)
    return settled


def _settle_job(
    session: Session, tenant_id: str, job: JobSpec, dataset: Dataset, settings: Settings
) -> tuple[JobSpec, str | None]:
    try:
        return jobs.settle(session, tenant_id, job, dataset=dataset, settings=settings)
    except (ServiceError, EngineError) as error:
        error.param = f"job.{error.param}" if error.param else "job"
        raise


def _send(unit: Unit, parts: Parts, sweep_id: str) -> None:
    # without a broker the recovery sweep finds it
    unit.then(lambda: parts.queue.send_housekeeping(ADVANCE_TASK, sweep_id))
