"""Jobs: check a wish, make the row, show it.

The message to the workers goes out after the commit, and only as a hint.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from app.schemas.shared import refusal_of, refuse_unstorable
from app.services import lineage, measuring
from app.services.parts import Parts, Unit
from core.db import Session, datasets, estimates, jobs, nodes, sweeps
from core.db.idempotency import digest_request, find_by_key
from core.db.models import Dataset, Job
from core.errors import BadInput, Conflict, InvalidTransition, NotFound
from core.settings import Settings
from core.states import WAITS_FOR_START, DatasetStatus, JobStatus
from peft_engine.configs import JobSpec
from peft_engine.configs.families import ARCHITECTURES, check_family
from peft_engine.configs.metrics import METRICS


def create(
    unit: Unit,
    *,
    parts: Parts,
    tenant_id: str,
    spec: JobSpec,
    idempotency_key: str | None,
    reproduces_job_id: str | None = None,
) -> tuple[Job, bool]:
    """Make a job, unless the same wish has made it already.

    Args:
        unit: The transaction.
        parts: The known base models, and the queue that is told after the commit.
        tenant_id: The owner.
        spec: What to train.
        idempotency_key: The caller's key; without one an equal body within two minutes is the same
            wish.
        reproduces_job_id: The owner's job that this one repeats.

    Returns:
        The job, and whether it is new.

    ``BadInput``, ``NotFound`` and ``Conflict`` go through where the job cannot be trained as asked;
    ``param`` names the field.
    """
    asked = spec.model_dump(mode="json")
    refuse_unstorable(asked)
    if idempotency_key is not None:
        # the same answer, whatever has become of its data set, its parent or our settings
        known = find_by_key(
            unit.session,
            Job,
            tenant_id=tenant_id,
            key=idempotency_key,
            request_digest=digest_request(asked),
        )
        if known is not None:
            return known, False
    dataset, spec, task = _check_wish(unit.session, parts.settings, tenant_id, spec)
    if idempotency_key is None:
        # A name that means a newer parent by now is another wish; a key stands for the body alone.
        asked = spec.model_dump(mode="json")
    status, reason = _begin(dataset, spec)
    job, is_new = jobs.create_once(
        unit.session,
        tenant_id=tenant_id,
        idempotency_key=idempotency_key,
        request_digest=digest_request(
            asked if reproduces_job_id is None else [asked, reproduces_job_id]
        ),
        reproduces_job_id=reproduces_job_id,
        dataset_id=dataset.id,
        base_model=spec.base_model,
        task=task,
        adapter_name=spec.adapter_name or adapter_name(dataset.name, spec.base_model),
        spec={**spec.model_dump(mode="json"), "task": task},
        metadata=dict(spec.metadata),
        status=status,
        reason=reason,
        max_attempts=parts.settings.max_attempts,
    )
    if is_new and job.status == JobStatus.QUEUED:
        _send(unit, parts, job)
    if is_new and job.reason == WAITS_FOR_START:
        measuring.measure_job(unit, parts=parts, job=job)
    return job, is_new


def check(
    session: Session, *, settings: Settings, tenant_id: str, spec: JobSpec
) -> tuple[Dataset, dict[str, Any]]:
    """Find out whether a job could be made now, and make none.

    Args:
        session: A writing session: the data set is kept from being deleted meanwhile.
        settings: Of the service.
        tenant_id: Who asks.
        spec: What to train.

    Returns:
        The data set, and the spec as a job's row would have it. ``BadInput``, ``NotFound`` and
        ``Conflict`` go through as from ``create``.
    """
    refuse_unstorable(spec.model_dump(mode="json"))
    dataset, spec, task = _check_wish(session, settings, tenant_id, spec)
    return dataset, {**spec.model_dump(mode="json"), "task": task}


def _check_wish(
    session: Session, settings: Settings, tenant_id: str, spec: JobSpec
) -> tuple[Dataset, JobSpec, str | None]:
    dataset = datasets.hold(session, tenant_id, spec.dataset_id)
    return dataset, *settle(session, tenant_id, spec, dataset=dataset, settings=settings)


def settle(
    session: Session, tenant_id: str, spec: JobSpec, *, dataset: Dataset, settings: Settings
) -> tuple[JobSpec, str | None]:
    """Check a job as far as it can be before training, and decide what it refers to.

    Args:
        session: A writing session.
        tenant_id: The owner.
        spec: The job as asked.
        dataset: Its data set, held.
        settings: The known base models and what a job is given.

    Returns:
        The job with its parent decided, and its task if that is known. ``BadInput``, ``NotFound``,
        ``Conflict`` and the engine's ``ConfigError`` go through for a job that cannot be trained.
    """
    described = describe_base(session, spec.base_model)
    spec = lineage.inherit(session, tenant_id, spec, described=described)
    return spec, _check(dataset, spec, settings, described)


def _begin(dataset: Dataset, spec: JobSpec) -> tuple[JobStatus, str | None]:
    """Status of a new job, and why it waits."""
    if dataset.status != DatasetStatus.READY:
        return JobStatus.VALIDATING_FILES, None
    if spec.auto_start:
        return JobStatus.QUEUED, None
    return JobStatus.PAUSED, WAITS_FOR_START


def _send(unit: Unit, parts: Parts, job: Job) -> None:
    """Tell the workers after the commit. Without a broker the row stays, and the sweep sends it."""
    job_id, priority = job.id, job.priority

    def send() -> None:
        if not parts.queue.send_training(job_id, priority=priority):
            with parts.database.write() as session:
                jobs.mark_unsent(session, [job_id])

    unit.then(send)


def _check(
    dataset: Dataset, spec: JobSpec, settings: Settings, described: Sequence[Mapping[str, Any]]
) -> str | None:
    if spec.base_model not in settings.base_models:
        known = ", ".join(sorted(settings.base_models))
        raise NotFound(
            f"there is no base model {spec.base_model!r}; this service has {known}",
            code="base_not_found",
            param="base_model",
        )
    if dataset.status == DatasetStatus.INVALID:
        raise Conflict(
            f"the data set {dataset.id} is invalid; its report lists every problem with a fix",
            code="dataset_not_ready",
            param="dataset_id",
        )
    if spec.training.devices > settings.devices_per_job:
        raise BadInput(
            f"a job is given {settings.devices_per_job} device(s) here and this one asks for "
            f"{spec.training.devices}; ask for fewer, or have the operator raise "
            "TUNERY_DEVICES_PER_JOB",
            code="too_many_devices",
            param="training.devices",
        )
    _check_length(described, spec)
    if dataset.task is not None:
        _check_task(dataset.task, spec)
        _check_metric(dataset.task, spec)
        _check_family(described, dataset.task, spec.base_model)
    leakage = datasets.find_leakage(dataset)
    if leakage is not None and not spec.allow_leakage:
        raise BadInput(leakage["message"], code=leakage["code"], param=leakage["param"])
    return spec.task or dataset.task


def _check_task(task: str, spec: JobSpec) -> None:
    if spec.task is not None and spec.task != task:
        raise BadInput(
            f"the data set is for {task}, the job asks for {spec.task}",
            code="task_mismatch",
            param="task",
        )
    if task not in ARCHITECTURES:
        offered = ", ".join(sorted(ARCHITECTURES))
        raise BadInput(
            f"{task} cannot be trained yet; offered are {offered}", code="unsupported", param="task"
        )


def _check_metric(task: str, spec: JobSpec) -> None:
    stopping = spec.training.early_stopping
    if stopping is None or stopping.metric == "auto" or stopping.metric in METRICS[task]:
        return
    raise BadInput(
        f"{task} has no metric {stopping.metric!r} on validation; use "
        f"{', '.join(sorted(METRICS[task]))}",
        code="unknown_metric",
        param="training.early_stopping.metric",
    )


def read_spec(kept: Mapping[str, Any]) -> JobSpec:
    """Read the spec of a job that may have been made by a version that took what this one does not.

    Args:
        kept: As the job's row has it.

    Returns:
        The spec. ``BadInput`` goes through where it cannot be trained any more.
    """
    try:
        return JobSpec.model_validate(kept)
    except ValidationError as error:
        refusal = refusal_of(error)
        raise refusal from error


def describe_base(session: Session, base_model: str) -> list[Mapping[str, Any]]:
    """What live inference processes tell of a base.

    Args:
        session: To read with.
        base_model: Name of the base.

    Returns:
        One description a process; empty until one has looked at the base.
    """
    return [
        base
        for node in nodes.list_live(session)
        for base in node.bases
        if base.get("name") == base_model
    ]


def _check_length(described: Sequence[Mapping[str, Any]], spec: JobSpec) -> None:
    asked = spec.training.max_length
    for base in described:
        longest = base.get("max_length")
        if isinstance(asked, int) and longest is not None and asked > longest:
            raise BadInput(
                f"{spec.base_model} reads {longest} tokens at most; training.max_length is {asked}",
                code="too_long",
                param="training.max_length",
            )


def _check_family(described: Sequence[Mapping[str, Any]], task: str, base_model: str) -> None:
    """Refuse what the engine would refuse once the base is loaded, at once."""
    for base in described:
        family = base.get("architecture")
        if family is not None:
            check_family(task, family, base=base_model)


def adapter_name(dataset_name: str, base_model: str) -> str:
    """Name the adapter of a job that names none.

    Args:
        dataset_name: Name of the data set.
        base_model: Name of the base.

    Returns:
        Both, 64 characters at most.
    """
    tail = f"-{base_model}"[:32]
    return (dataset_name[: 64 - len(tail)] + tail).rstrip("-._")


def cancel(unit: Unit, *, parts: Parts, tenant_id: str, job_id: str) -> Job:
    """Cancel a job: at once when it waits, through its trainer when it runs.

    What is measured for it is cancelled too.

    Args:
        unit: The transaction.
        parts: The queue that is told after the commit.
        tenant_id: Who asks.
        job_id: Which job.

    Returns:
        The job, ``cancelled`` or ``cancelling``; a second wish changes nothing.
    """
    job = jobs.request_cancel(unit.session, tenant_id, job_id)
    estimates.cancel_of_job(unit.session, job.id, reason="its job was cancelled")
    if job.status == JobStatus.CANCELLED:
        unit.then(lambda: parts.queue.send_deliveries(job_id))
    return job


def start(unit: Unit, *, parts: Parts, tenant_id: str, job_id: str) -> Job:
    """Queue a job that was made with ``auto_start: false``, if it can still be trained.

    Args:
        unit: The transaction.
        parts: The known base models, and the queue that is told after the commit.
        tenant_id: Who asks.
        job_id: Which job.

    Returns:
        The job; one that is queued or runs is left as it is. ``BadInput``, ``NotFound`` and
        ``Conflict`` go through as from ``create``: the task of its data set and the kind of its
        base may not have been known then.
    """
    job = jobs.start(unit.session, tenant_id, job_id)
    if job.status == JobStatus.QUEUED:
        _check_again(unit.session, parts, job)
        # or the job would wait for what it would take
        estimates.cancel_of_job(unit.session, job.id, reason="its job was started")
        _send(unit, parts, job)
    return job


def _check_again(session: Session, parts: Parts, job: Job) -> None:
    """Refuse what may be known by now and was not when the job was made, as ``create`` does."""
    spec = read_spec(job.spec)
    dataset = datasets.hold(session, job.tenant_id, job.dataset_id)
    _check(dataset, spec, parts.settings, describe_base(session, spec.base_model))


def resume(unit: Unit, *, parts: Parts, tenant_id: str, job_id: str) -> Job:
    """Queue a paused job again; one that waits for its start is started.

    Args:
        unit: The transaction.
        parts: The queue that is told after the commit.
        tenant_id: Who asks.
        job_id: Which job.

    Returns:
        The job; one that is queued or runs is left as it is.
    """
    if jobs.get(unit.session, tenant_id, job_id).reason == WAITS_FOR_START:
        return start(unit, parts=parts, tenant_id=tenant_id, job_id=job_id)
    job = jobs.resume(unit.session, tenant_id, job_id)
    if job.status == JobStatus.QUEUED:
        _send(unit, parts, job)
    return job


def retry(unit: Unit, *, parts: Parts, tenant_id: str, job_id: str) -> Job:
    """Queue a failed job again; it goes on from its last checkpoint, and so does its sweep.

    Args:
        unit: The transaction.
        parts: The known base models, and the queue that is told after the commit.
        tenant_id: Who asks.
        job_id: Which job.

    Returns:
        The job in ``queued``. ``BadInput``, ``NotFound`` and ``Conflict`` go through as from
        ``create``: it may have failed because its data set turned out to be of no use.

    Raises:
        InvalidTransition: The job has not failed.
    """
    job = jobs.get(unit.session, tenant_id, job_id)
    if job.status == JobStatus.FAILED:
        _check_again(unit.session, parts, job)
        lineage.require_parent(unit.session, job)
        sweeps.reopen(unit.session, job)
    elif job.status == JobStatus.QUEUED:
        raise InvalidTransition(f"job {job_id} is queued already")
    job = jobs.retry(unit.session, tenant_id, job_id, attempts=parts.settings.max_attempts)
    _send(unit, parts, job)
    return job
