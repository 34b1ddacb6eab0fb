"""Checkpoints of a job: show them, and publish one as an adapter that stays.

A worker has put the delta of a checkpoint where that of an adapter lies. To publish it is to write
the adapter's row: no bytes are copied, and the checkpoint goes its way as before.
"""

from collections.abc import Mapping
from typing import Any

from app.schemas.checkpoints import CheckpointAnswer, MeasuredAt, PublishRequest
from app.services.origins import CheckpointNotFound, name_of
from app.services.parts import Parts, Unit
from core.db import Session, adapters, checkpoints, events, jobs
from core.db.idempotency import create_once, digest_request
from core.db.models import Adapter, Checkpoint, Job
from core.errors import Conflict, Unavailable
from core.storage import ObjectStore

_NAME_CHARS = 64
_VALIDATION, _TRAIN = "validation/", "train/"
_NOTES = (
    "not certified: its answers were not compared with the trainer's own",
    "not tested: no test split was looked at, so a gate has nothing to compare",
)


def list_of(
    session: Session, store: ObjectStore, tenant_id: str, job_id: str
) -> list[CheckpointAnswer]:
    """Show the checkpoints of a job.

    Args:
        session: To read with.
        store: Is asked for the delta of each; a job keeps two.
        tenant_id: Who asks.
        job_id: Whose checkpoints.

    Returns:
        The furthest first. ``NotFound`` goes through when the tenant has no such job.
    """
    job = jobs.get(session, tenant_id, job_id)
    rows = checkpoints.list_newest(session, tenant_id, job_id)
    return [_as_answer(session, store, job, row) for row in rows]


def _as_answer(session: Session, store: ObjectStore, job: Job, row: Checkpoint) -> CheckpointAnswer:
    told = row.delta
    found = _measured(session, job, row, _VALIDATION)
    return CheckpointAnswer(
        id=row.id,
        job_id=job.id,
        step=row.step,
        attempt=row.attempt,
        bytes=row.bytes + (0 if told is None else told["bytes"]),
        delta_bytes=None if told is None else told["bytes"],
        sha256=row.sha256,
        digest=None if told is None else told["digest"],
        can_predict=told is not None and _is_there(store, str(told["key"])),
        model=None if told is None else name_of(job, row),
        validation=None if found is None else MeasuredAt(step=found[0], metrics=found[1]),
        created_at=row.created_at,
    )


def _is_there(store: ObjectStore, key: str) -> bool:
    try:
        return store.exists(key)
    except Unavailable:  # an outage is no loss, and the list needs nothing else of the store
        return True


def _measured(
    session: Session, job: Job, row: Checkpoint, prefix: str
) -> tuple[int, dict[str, float | None]] | None:
    return events.measured_at(session, job.tenant_id, job.id, prefix=prefix, step=row.step)


def publish(
    unit: Unit,
    parts: Parts,
    *,
    tenant_id: str,
    job_id: str,
    checkpoint_id: str,
    asked: PublishRequest,
    idempotency_key: str | None,
) -> tuple[Adapter, bool]:
    """Make an adapter of a checkpoint, unless the same wish has made it already.

    Args:
        unit: The transaction.
        parts: Where the bytes lie.
        tenant_id: Who asks.
        job_id: Whose checkpoint.
        checkpoint_id: Which one.
        asked: What the adapter is called.
        idempotency_key: The caller's key; without one the same wish gives the same adapter, however
            long ago, until that is deleted.

    Returns:
        The adapter, and whether it is new. ``NotFound`` and ``Conflict`` go through for a job that
        is not there, a checkpoint that is gone, a certificate that failed and a name that an alias
        has.
    """
    job = jobs.get(unit.session, tenant_id, job_id)
    wish: dict[str, Any] = {
        "idempotency_key": idempotency_key,
        "request_digest": digest_request([job_id, checkpoint_id, asked.model_dump(mode="json")]),
    }
    return create_once(
        unit.session,
        Adapter,
        lambda: _make(unit.session, parts, job, checkpoint_id, asked, wish),
        Adapter.deleted_at.is_(None),
        tenant_id=tenant_id,
        window_seconds=None,
        **wish,
    )


def _make(
    session: Session,
    parts: Parts,
    job: Job,
    checkpoint_id: str,
    asked: PublishRequest,
    wish: Mapping[str, Any],
) -> Adapter:
    """Write the adapter's row.

    Raises:
        CheckpointNotFound: It was removed in the same moment.
    """
    row = _find(session, job, checkpoint_id)
    _refuse_uncertain(job)
    metadata = asked.metadata if asked.metadata is not None else job.metadata_
    adapter = adapters.publish(
        session,
        tenant_id=job.tenant_id,
        name=asked.name or _name_at(job, row.step),
        **(row.delta or {}),
        dataset_id=job.dataset_id,
        parent_adapter_id=job.spec.get("parent_adapter_id"),
        metrics=_metrics_of(session, job, row),
        metadata_=dict(metadata),
        origin={
            "format": "checkpoint",
            "job_id": job.id,
            "checkpoint_id": row.id,
            "step": row.step,
            "attempt": row.attempt,
            "notes": list(_NOTES),
        },
        **wish,
    )
    # The row holds the bytes from now on; whoever removed the checkpoint may have been quicker.
    if not parts.store.exists(adapter.key):
        raise CheckpointNotFound(_explain_gone(job, checkpoint_id), param="checkpoint_id")
    events.append(
        session,
        job_id=job.id,
        tenant_id=job.tenant_id,
        attempt=job.attempt,
        event="log",
        message=f"The checkpoint at step {row.step} was published as {adapter.name}"
        f"@{adapter.version}.",
        data={"adapter_id": adapter.id, "checkpoint_id": row.id, "step": row.step},
    )
    return adapter


def _find(session: Session, job: Job, checkpoint_id: str) -> Checkpoint:
    """The checkpoint, with a delta.

    Raises:
        CheckpointNotFound: It is not there, or has none.
    """
    row = checkpoints.find(session, job.tenant_id, checkpoint_id)
    if row is None or row.job_id != job.id:
        raise CheckpointNotFound(_explain_gone(job, checkpoint_id), param="checkpoint_id")
    if row.delta is None:
        raise CheckpointNotFound(
            f"checkpoint {checkpoint_id} was written by an earlier version, which kept no delta of "
            "its own; the next checkpoint of the job has one",
            param="checkpoint_id",
        )
    return row


def _refuse_uncertain(job: Job) -> None:
    """Refuse to publish what a certificate has refused.

    Raises:
        Conflict: The job failed for it.
    """
    error = job.error or {}
    if error.get("code") == "certificate_failed":
        raise Conflict(
            f"job {job.id} failed since its adapter is served otherwise than it was trained, and "
            "its checkpoints are made of the same parts; they can be asked, not published",
        )


def _explain_gone(job: Job, checkpoint_id: str) -> str:
    return (
        f"job {job.id} has no checkpoint {checkpoint_id!r}, or none any more; GET "
        f"/jobs/{job.id}/checkpoints lists what there is"
    )


def _name_at(job: Job, step: int) -> str:
    """Never the name of the job's adapter: who asks for that waits for the end of the job."""
    ending = f"-step-{step}"
    return (job.adapter_name or job.id)[: _NAME_CHARS - len(ending)] + ending


def _metrics_of(session: Session, job: Job, row: Checkpoint) -> dict[str, Any]:
    """What was measured on the way, each with its step: nothing was measured for the adapter."""
    metrics: dict[str, Any] = {}
    train = _measured(session, job, row, _TRAIN)
    if train is not None:
        metrics["train"] = {**train[1], "step": train[0]}
    found = _measured(session, job, row, _VALIDATION)
    if found is not None:
        deciding = (job.resolved or {}).get("metric")
        metrics["validation"] = {"metric": deciding, "after": found[1], "step": found[0]}
    return metrics
