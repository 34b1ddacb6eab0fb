"""What a job was made of, and the same job once more."""

from collections.abc import Mapping
from typing import Any

from app.schemas.manifests import (
    AdapterManifest,
    BaseManifest,
    DatasetManifest,
    JobManifest,
    Reproduction,
    SplitManifest,
)
from app.services.job_answers import merge_resolved
from app.services.jobs import create, describe_base, read_spec
from app.services.parts import Parts, Unit
from core.db import Session, adapters, datasets, jobs
from core.db.models import Adapter, Job
from core.errors import BadInput, InvalidTransition
from core.states import JobStatus
from peft_engine.configs import BaseConfig
from peft_engine.configs.base import join_base_name

_SUFFIX = "-reproduced"
"""Ends the adapter's name of a job that repeats another: whoever asks for the newest version of the
name must not be answered by an experiment."""

_NAME_CHARS = 64


def describe(session: Session, tenant_id: str, job_id: str) -> JobManifest:
    """Say everything that decides what a job makes.

    Args:
        session: To read with.
        tenant_id: Who asks.
        job_id: Which job.

    Returns:
        Its manifest; rows of what was deleted since are still told.
    """
    job = jobs.get(session, tenant_id, job_id)
    made = adapters.find_row(session, tenant_id, job.adapter_id)
    parent = adapters.find_row(session, tenant_id, job.spec.get("parent_adapter_id"))
    return JobManifest(
        job_id=job.id,
        status=job.status,
        spec=job.spec,
        resolved=job.resolved,
        dataset=_dataset_of(session, job),
        base=BaseManifest(
            name=_base_name(job.base_model, job.spec),
            fingerprint=made.base_fingerprint if made else None,
            template_digest=made.template_digest if made else None,
        ),
        parent=_as_adapter(parent),
        adapter=_as_adapter(made),
        environment=job.environment,
        reproduces=_compare(session, job, made),
    )


def reproduce(unit: Unit, *, parts: Parts, tenant_id: str, job_id: str) -> Job:
    """Make a job's twin: the same spec on the same data set, base and parent.

    What ``auto`` became then is set, so that newer defaults change nothing.

    Args:
        unit: The transaction.
        parts: The known base models, and the queue that is told after the commit.
        tenant_id: Who asks.
        job_id: The job to repeat.

    Returns:
        The new job; the one that was made within the last two minutes when asked again.

    Raises:
        InvalidTransition: The job made no adapter that another could be compared with.

    ``NotFound``, ``Conflict`` and ``BadInput`` go through where the job could not be made any more.
    """
    job = jobs.get(unit.session, tenant_id, job_id)
    made = adapters.find_row(unit.session, tenant_id, job.adapter_id)
    if job.status is not JobStatus.SUCCEEDED or made is None:
        message = f"job {job.id} is {job.status}; only a job that succeeded can be reproduced"
        raise InvalidTransition(message)
    _check_base(unit.session, job, made)
    name = (job.adapter_name or made.name)[: _NAME_CHARS - len(_SUFFIX)] + _SUFFIX
    asked = merge_resolved(job.spec, job.resolved) | {"adapter_name": name, "auto_start": True}
    repeated, _ = create(
        unit,
        parts=parts,
        tenant_id=tenant_id,
        spec=read_spec(asked),
        idempotency_key=None,
        reproduces_job_id=job.id,
    )
    return repeated


def _check_base(session: Session, job: Job, made: Adapter) -> None:
    """Refuse a base that has other weights by now, as far as an inference process has told.

    Raises:
        BadInput: It has.
    """
    name = made.base_model
    for base in describe_base(session, name):
        fingerprint = base.get("fingerprint")
        if fingerprint is not None and fingerprint != made.base_fingerprint:
            raise BadInput(
                f"{name} has other weights than job {job.id} was trained on: {fingerprint}, not "
                f"{made.base_fingerprint}",
                code="base_mismatch",
                param="base_model",
            )


def _compare(session: Session, job: Job, made: Adapter | None) -> Reproduction | None:
    if job.reproduces_job_id is None:
        return None
    original = jobs.get(session, job.tenant_id, job.reproduces_job_id)
    wanted = adapters.find_row(session, job.tenant_id, original.adapter_id)
    if wanted is None:
        return None
    same = None if made is None else made.digest == wanted.digest
    return Reproduction(job_id=original.id, digest=wanted.digest, same=same)


def _dataset_of(session: Session, job: Job) -> DatasetManifest:
    row = datasets.get_for_worker(session, job.dataset_id)
    if row is None:
        return DatasetManifest(id=job.dataset_id, splits={}, deleted=True)
    return DatasetManifest(
        id=row.id,
        sha256=row.sha256,
        splits={
            split: SplitManifest(rows=stored["rows"], sha256=stored["sha256"])
            for split, stored in (row.splits or {}).items()
        },
        deleted=row.deleted_at is not None,
    )


def _base_name(base_model: str, spec: Mapping[str, Any]) -> str:
    return join_base_name(base_model, BaseConfig.model_validate(spec.get("base") or {}))


def _as_adapter(row: Adapter | None) -> AdapterManifest | None:
    if row is None:
        return None
    return AdapterManifest(
        id=row.id,
        adapter=f"{row.name}@{row.version}",
        digest=row.digest,
        deleted=row.deleted_at is not None,
    )
