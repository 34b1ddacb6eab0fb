"""Jobs, what they leave behind while they run, and what they would take."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base, BigKey, text_enum
from core.db.models.columns import (
    BASE_NAME,
    DIGEST,
    ID,
    NAME,
    created_column,
    id_column,
    tenant_column,
    updated_column,
)
from core.states import EstimateStatus, JobStatus, Phase


class Job(Base):
    """One wish to train; ``attempt`` fences its writers."""

    __tablename__ = "jobs"
    __table_args__ = (
        sa.UniqueConstraint("tenant_id", "idempotency_key"),
        sa.CheckConstraint("control IN ('cancel', 'pause')", name="control"),
        sa.Index(None, "tenant_id", "id"),
        sa.Index(None, "tenant_id", "request_digest"),
        sa.Index(None, "dataset_id"),
        sa.Index(None, "sweep_id"),
        sa.Index(None, "status", "lease_until"),
        sa.Index(None, "status", "sent_at"),
    )

    id: Mapped[str] = id_column()
    tenant_id: Mapped[str] = tenant_column()
    dataset_id: Mapped[str] = mapped_column(ID, sa.ForeignKey("datasets.id"))
    base_model: Mapped[str] = mapped_column(BASE_NAME)
    task: Mapped[str | None] = mapped_column(NAME)
    adapter_name: Mapped[str | None] = mapped_column(NAME)
    status: Mapped[JobStatus] = mapped_column(text_enum(JobStatus, name="status"))
    phase: Mapped[Phase | None] = mapped_column(text_enum(Phase, name="phase"))
    reason: Mapped[str | None] = mapped_column(sa.Text)
    spec: Mapped[dict[str, Any]]
    """As asked, defaults filled in."""
    resolved: Mapped[dict[str, Any] | None]
    """As trained: every ``auto`` replaced."""
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata", default=dict)
    priority: Mapped[int] = mapped_column(default=0)
    """Lower runs sooner."""
    control: Mapped[str | None] = mapped_column(sa.String(10))
    """A wish the trainer has not obeyed yet: ``cancel`` or ``pause``."""
    attempt: Mapped[int] = mapped_column(default=0)
    max_attempts: Mapped[int]
    """Raised by one whenever an attempt ends in order (drain, pause): only losses count."""
    owner: Mapped[str | None] = mapped_column(sa.String(255))
    lease_until: Mapped[datetime | None]
    sent_at: Mapped[datetime | None]
    """When the last message for this queued job went out; None: none did."""
    sends: Mapped[int] = mapped_column(default=0)
    """Messages sent since the job was last queued; spaces out the next one."""
    not_before: Mapped[datetime | None]
    """Until then nobody claims the queued job: it met an outage."""
    progress: Mapped[dict[str, Any] | None]
    metrics: Mapped[dict[str, Any] | None]
    certificate: Mapped[dict[str, Any] | None]
    trainable_parameters: Mapped[int | None] = mapped_column(sa.BigInteger)
    base_parameters: Mapped[int | None] = mapped_column(sa.BigInteger)
    adapter_id: Mapped[str | None] = mapped_column(ID)
    """No foreign key: the adapter's row points here already, and a circle has no order."""
    environment: Mapped[dict[str, Any] | None]
    """Versions and machine that trained it."""
    reproduces_job_id: Mapped[str | None] = mapped_column(ID)
    """The job of the same tenant that it was made to repeat; no foreign key, which SQLite adds to
    no table that is there."""
    sweep_id: Mapped[str | None] = mapped_column(ID)
    """The sweep of the same tenant that made it; no foreign key, for the same reason."""
    error: Mapped[dict[str, Any] | None]
    idempotency_key: Mapped[str | None] = mapped_column(sa.String(255))
    request_digest: Mapped[str | None] = mapped_column(DIGEST)
    created_at: Mapped[datetime] = created_column()
    updated_at: Mapped[datetime] = updated_column()
    started_at: Mapped[datetime | None]
    first_step_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class JobEvent(Base):
    """One line of a job's story; ``seq`` only grows."""

    __tablename__ = "job_events"
    __table_args__ = (sa.Index(None, "job_id", "seq"), {"sqlite_autoincrement": True})

    seq: Mapped[int] = mapped_column(BigKey, primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ID, sa.ForeignKey("jobs.id"))
    tenant_id: Mapped[str] = tenant_column()
    attempt: Mapped[int]
    event: Mapped[str] = mapped_column(sa.String(20))
    level: Mapped[str] = mapped_column(sa.String(10), default="info")
    message: Mapped[str] = mapped_column(sa.Text)
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime] = created_column()


class JobMetric(Base):
    """One point of one curve; a repeated step overwrites, so that a resumed job has one curve."""

    __tablename__ = "job_metrics"

    job_id: Mapped[str] = mapped_column(ID, sa.ForeignKey("jobs.id"), primary_key=True)
    name: Mapped[str] = mapped_column(NAME, primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant_id: Mapped[str] = tenant_column()
    value: Mapped[float | None] = mapped_column(sa.Double)
    """None for a value that is not finite."""
    attempt: Mapped[int]
    created_at: Mapped[datetime] = created_column()


class Checkpoint(Base):
    """A checkpoint whose bytes are in storage."""

    __tablename__ = "checkpoints"
    __table_args__ = (
        sa.UniqueConstraint("job_id", "attempt", "step"),
        sa.Index(None, "delta_key"),
    )

    id: Mapped[str] = id_column()
    job_id: Mapped[str] = mapped_column(ID, sa.ForeignKey("jobs.id"))
    tenant_id: Mapped[str] = tenant_column()
    attempt: Mapped[int]
    step: Mapped[int]
    key: Mapped[str] = mapped_column(sa.String(255))
    """Of the state, which only training reads."""
    bytes: Mapped[int] = mapped_column(sa.BigInteger)
    """Of the state alone."""
    sha256: Mapped[str] = mapped_column(sa.String(64))
    delta_key: Mapped[str | None] = mapped_column(sa.String(255))
    """Of the delta, which can be served; an equal delta of an adapter is the same object. None: an
    earlier version wrote the checkpoint, and the state holds the delta."""
    delta: Mapped[dict[str, Any] | None]
    """What the row of an adapter would say of the delta, by the names of its columns."""
    created_at: Mapped[datetime] = created_column()


class Estimate(Base):
    """One wish to know what a job would take; ``attempt`` fences its writers as a job's does."""

    __tablename__ = "estimates"
    __table_args__ = (
        sa.CheckConstraint("control IN ('cancel')", name="control"),
        sa.Index(None, "tenant_id", "id"),
        sa.Index(None, "job_id"),
        sa.Index(None, "status", "id"),
    )

    id: Mapped[str] = id_column()
    tenant_id: Mapped[str] = tenant_column()
    dataset_id: Mapped[str] = mapped_column(ID, sa.ForeignKey("datasets.id"))
    job_id: Mapped[str | None] = mapped_column(ID, sa.ForeignKey("jobs.id"))
    """The job that waits for its start, if it was made with one."""
    spec: Mapped[dict[str, Any]]
    """As asked, defaults filled in."""
    status: Mapped[EstimateStatus] = mapped_column(text_enum(EstimateStatus, name="status"))
    reason: Mapped[str | None] = mapped_column(sa.Text)
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    control: Mapped[str | None] = mapped_column(sa.String(10))
    """``cancel``, which the trainer has not obeyed yet."""
    attempt: Mapped[int] = mapped_column(default=0)
    losses: Mapped[int] = mapped_column(default=0)
    """Attempts that ended without a word of theirs."""
    owner: Mapped[str | None] = mapped_column(sa.String(255))
    lease_until: Mapped[datetime | None]
    sent_at: Mapped[datetime | None]
    """When the last message for it went out; None: none did."""
    sends: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[datetime | None]
    created_at: Mapped[datetime] = created_column()
    updated_at: Mapped[datetime] = updated_column()
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
