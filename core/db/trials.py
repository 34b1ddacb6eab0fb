"""The trials of a sweep: which points were made, and what became of their jobs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db.models import Job, Sweep, SweepTrial
from core.states import TERMINAL, JobStatus

JOB_PRIORITY = 6
"""Of a sweep's jobs; those that somebody asked for one by one have 0 and run sooner."""

TRIALS_SUFFIX = "-trials"
"""Ends the name of the trials' adapters: whoever asks for the newest version of the sweep's own
must not be answered by one of many tries."""

_NAME_CHARS = 64


@dataclass(frozen=True, slots=True)
class Trial:
    """A point of a sweep and what became of it.

    Attributes:
        number: 0 for the first.
        params: Value by path.
        job_id: None where the values go together in no job.
        status: The job's; ``failed`` without one.
        metrics: The job's.
        adapter_id: What it published.
        error: Of the job, or why there is none.
        started_at: When a worker first had the job.
        finished_at: When the job ended.
    """

    number: int
    params: Mapping[str, Any]
    job_id: str | None
    status: JobStatus
    metrics: Mapping[str, Any] | None
    adapter_id: str | None
    error: Mapping[str, Any] | None
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def ended(self) -> bool:
        """Whether nothing more becomes of it by itself."""
        return self.status in TERMINAL

    @property
    def validation(self) -> Mapping[str, Any]:
        """``metrics.validation`` of a job that succeeded; else nothing."""
        if self.status is not JobStatus.SUCCEEDED:
            return {}
        found: Mapping[str, Any] = (self.metrics or {}).get("validation") or {}
        return found

    @property
    def metric(self) -> str | None:
        """Name of the metric by which the job kept its step."""
        return self.validation.get("metric")

    @property
    def value(self) -> float | None:
        """That metric at the step that was kept; None where there is no finite number."""
        value = (self.validation.get("after") or {}).get(self.metric)
        return value if isinstance(value, int | float) and math.isfinite(value) else None


def list_of(session: Session, tenant_id: str, sweep_id: str) -> list[Trial]:
    """Read the trials of a sweep, without what their jobs hold besides.

    Args:
        session: An open session.
        tenant_id: Whose sweep.
        sweep_id: Which one.

    Returns:
        By number.
    """
    query = (
        sa.select(
            SweepTrial.number,
            SweepTrial.params,
            SweepTrial.job_id,
            Job.status,
            Job.metrics,
            Job.adapter_id,
            sa.func.coalesce(Job.error, SweepTrial.error, type_=SweepTrial.error.type),
            Job.started_at,
            Job.finished_at,
        )
        .join(Job, Job.id == SweepTrial.job_id, isouter=True)
        .where(SweepTrial.tenant_id == tenant_id, SweepTrial.sweep_id == sweep_id)
        .order_by(SweepTrial.number)
    )
    return [
        Trial(number, params, job_id, status or JobStatus.FAILED, *rest)
        for number, params, job_id, status, *rest in session.execute(query)
    ]


def add(
    session: Session,
    sweep: Sweep,
    *,
    number: int,
    params: Mapping[str, Any],
    job_id: str | None,
    error: Mapping[str, Any] | None = None,
) -> None:
    """Write down a trial, in the transaction that made its job.

    Args:
        session: A session that has taken the sweep.
        sweep: Which one.
        number: New to it.
        params: Value by path.
        job_id: Its job, if there is one.
        error: Why there is none.
    """
    session.add(
        SweepTrial(
            sweep_id=sweep.id,
            number=number,
            tenant_id=sweep.tenant_id,
            params=dict(params),
            job_id=job_id,
            error=None if error is None else dict(error),
        )
    )
    session.flush()


def name_adapters(name: str) -> str:
    """Name the adapters of trials.

    Args:
        name: Of the adapter that the sweep shall make.

    Returns:
        Another name, 64 characters at most.
    """
    room = _NAME_CHARS - len(TRIALS_SUFFIX)
    made = name[:room] + TRIALS_SUFFIX
    return made if made != name else name[: room - 1] + TRIALS_SUFFIX
