"""The trials of a sweep: which points were made, and what became of their jobs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from core.db.models import Adapter, Job, Sweep, SweepTrial
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
        report: ``metrics.validation`` of the job.
        adapter_id: What it published.
        error: Of the job, or why there is none.
        started_at: When a worker first had the job.
        finished_at: When the job ended.
    """

    number: int
    params: Mapping[str, Any]
    job_id: str | None
    status: JobStatus
    report: Mapping[str, Any] | None
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
        """The report of a job that succeeded; else nothing."""
        return (self.report or {}) if self.status is JobStatus.SUCCEEDED else {}

    @property
    def metric(self) -> str | None:
        """Name of the metric by which the job kept its step."""
        return self.validation.get("metric")

    @property
    def value(self) -> float | None:
        """That metric at the step that was kept; None where there is no finite number."""
        value = (self.validation.get("after") or {}).get(self.metric)
        return value if isinstance(value, int | float) and math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class Tested:
    """The best trial once more, with the test.

    Attributes:
        job_id: Its job.
        status: The job's.
        adapter_id: What it published.
        report: ``metrics.test`` of the job.
        same_digest: Whether its adapter is the best trial's; None until both are there.
    """

    job_id: str
    status: JobStatus
    adapter_id: str | None
    report: Mapping[str, Any] | None
    same_digest: bool | None


def list_of(session: Session, tenant_id: str, sweep_id: str) -> list[Trial]:
    """Read the trials of a sweep, without what their jobs hold besides.

    Args:
        session: An open session.
        tenant_id: Whose sweep.
        sweep_id: Which one.

    Returns:
        By number.
    """
    return list_of_all(session, tenant_id, [sweep_id])[sweep_id]


def list_of_all(
    session: Session, tenant_id: str, sweep_ids: Sequence[str]
) -> dict[str, list[Trial]]:
    """Read the trials of some sweeps in one query.

    Args:
        session: An open session.
        tenant_id: Whose sweeps.
        sweep_ids: Which ones.

    Returns:
        By sweep, then by number.
    """
    query = (
        sa.select(
            SweepTrial.sweep_id,
            SweepTrial.number,
            SweepTrial.params,
            SweepTrial.job_id,
            Job.status,
            Job.metrics["validation"],
            Job.adapter_id,
            sa.func.coalesce(Job.error, SweepTrial.error, type_=SweepTrial.error.type),
            Job.started_at,
            Job.finished_at,
        )
        .join(Job, Job.id == SweepTrial.job_id, isouter=True)
        .where(SweepTrial.tenant_id == tenant_id, SweepTrial.sweep_id.in_(sweep_ids))
        .order_by(SweepTrial.sweep_id, SweepTrial.number)
    )
    found: dict[str, list[Trial]] = {sweep_id: [] for sweep_id in sweep_ids}
    for sweep_id, number, params, job_id, status, *rest in session.execute(query):
        found[sweep_id].append(Trial(number, params, job_id, status or JobStatus.FAILED, *rest))
    return found


def tests_of(session: Session, tenant_id: str, sweep_ids: Sequence[str]) -> dict[str, Tested]:
    """Read what the tests of some sweeps have come to, in one query.

    Args:
        session: An open session.
        tenant_id: Whose sweeps.
        sweep_ids: Which ones.

    Returns:
        By sweep, of those whose best trial is or was trained once more.
    """
    job, best = aliased(Job), aliased(Job)
    made, wanted = aliased(Adapter), aliased(Adapter)
    query = (
        sa.select(
            Sweep.id,
            job.id,
            job.status,
            job.adapter_id,
            job.metrics["test"],
            made.digest == wanted.digest,
        )
        .join(job, job.id == Sweep.test_job_id)
        .join(best, best.id == Sweep.best_job_id)
        .join(made, made.id == job.adapter_id, isouter=True)
        .join(wanted, wanted.id == best.adapter_id, isouter=True)
        .where(Sweep.tenant_id == tenant_id, Sweep.id.in_(sweep_ids))
    )
    return {sweep_id: Tested(*rest) for sweep_id, *rest in session.execute(query)}


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
