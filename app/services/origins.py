"""Who answers a row: an adapter, or a checkpoint of a job; and how a reference led to it."""

import re
from dataclasses import dataclass

from core.db import Session, checkpoints, jobs
from core.db.adapters import Resolved
from core.db.models import Checkpoint, Job
from core.errors import NotFound
from core.states import JobStatus

_NAME = re.compile(r"ft:.*:(?P<job>job_[0-9a-z]+):ckpt-step-(?P<step>[0-9]{1,10})")
"""As OpenAI names checkpoints; ``name_of`` writes the whole of it."""


class CheckpointNotFound(NotFound):
    """A checkpoint is not there, or not any more."""

    default_code = "checkpoint_not_found"


@dataclass(frozen=True)
class Origin:
    """Who answers, and how the reference led to it.

    Attributes:
        id: ``adp_…`` or ``ckpt_…``.
        name: ``name@version``, or the name of a checkpoint under ``/v1``.
        digest: Of the delta.
        key: Where the delta lies in storage.
        base_model: The base that it acts on.
        task: What it was trained for.
        labels: Its classes, if it has some.
        alias: Name of the alias that the reference was.
        revision: Which move of the alias had brought it there.
        job_id: Of a checkpoint: whose.
        step: Of a checkpoint: optimizer steps done.
    """

    id: str
    name: str
    digest: str
    key: str
    base_model: str
    task: str
    labels: list[str] | None
    alias: str | None = None
    revision: int | None = None
    job_id: str | None = None
    step: int | None = None


def of_adapter(found: Resolved) -> Origin:
    """An adapter.

    Args:
        found: What the reference meant.

    Returns:
        Who answers.
    """
    row = found.adapter
    return Origin(
        id=row.id,
        name=f"{row.name}@{row.version}",
        digest=row.digest,
        key=row.key,
        base_model=row.base_model,
        task=row.task,
        labels=row.labels,
        alias=found.alias,
        revision=found.revision,
    )


def name_of(job: Job, row: Checkpoint) -> str:
    """Name a checkpoint as ``model`` of a request under ``/v1``.

    Args:
        job: The job.
        row: One of its checkpoints.

    Returns:
        ``ft:<base>:<organization>:<suffix>:<job>:ckpt-step-<step>``.
    """
    suffix = job.adapter_name or ""
    return f"ft:{job.base_model}:{job.tenant_id}:{suffix}:{job.id}:ckpt-step-{row.step}"


def find_checkpoint(session: Session, tenant_id: str, reference: str) -> Origin:
    """Find a checkpoint that can be answered from.

    Args:
        session: To read with.
        tenant_id: Who asks.
        reference: Its id, or its name under ``/v1``.

    Returns:
        Who answers.

    Raises:
        CheckpointNotFound: There is none, or none any more; the message says what to do.
    """
    job, row = _look_up(session, tenant_id, reference)
    if job is None or row is None:
        raise CheckpointNotFound(_explain_gone(session, reference, job), param="adapter_id")
    if row.delta is None:
        raise CheckpointNotFound(
            f"{reference!r} was written by an earlier version, which kept no delta that could be "
            "answered from; the next checkpoint of the job has one",
            param="adapter_id",
        )
    told = row.delta
    return Origin(
        id=row.id,
        name=name_of(job, row),
        digest=told["digest"],
        key=told["key"],
        base_model=told["base_model"],
        task=told["task"],
        labels=told["labels"],
        job_id=job.id,
        step=row.step,
    )


def _look_up(
    session: Session, tenant_id: str, reference: str
) -> tuple[Job | None, Checkpoint | None]:
    named = _NAME.fullmatch(reference)
    if named is None:
        row = checkpoints.find(session, tenant_id, reference)
        return (None if row is None else jobs.get(session, tenant_id, row.job_id)), row
    try:
        job = jobs.get(session, tenant_id, named["job"])
    except NotFound:
        return None, None
    step = int(named["step"])
    rows = checkpoints.list_newest(session, tenant_id, job.id)
    at_step = (row for row in rows if row.step == step and name_of(job, row) == reference)
    return job, next(at_step, None)


def _explain_gone(session: Session, reference: str, job: Job | None) -> str:
    """Say what there is in its place, as far as the reference tells whose it was."""
    told = f"there is no checkpoint {reference!r}, or none any more"
    if job is None:
        return (
            f"{told}: a job keeps its newest two, and none once it has succeeded or was cancelled; "
            "GET /jobs/{job_id}/checkpoints lists them, and one that was published stays"
        )
    if job.status is JobStatus.SUCCEEDED:
        return f"{told}: job {job.id} has succeeded; ask its adapter {job.adapter_id}"
    rows = checkpoints.list_newest(session, job.tenant_id, job.id)
    kept = " and ".join(str(row.step) for row in rows)
    kept = f"keeps those of step {kept}" if rows else "has none"
    return f"{told}: job {job.id} is {job.status} and {kept}"
