"""Sweeps over the fields of a job."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base, text_enum
from core.db.clock import now
from core.db.models.columns import (
    DIGEST,
    ID,
    NAME,
    created_column,
    id_column,
    tenant_column,
    updated_column,
)
from core.states import SweepStatus


class Sweep(Base):
    """A search over the fields of a job; what it has found out stands in its jobs."""

    __tablename__ = "sweeps"
    __table_args__ = (
        sa.UniqueConstraint("tenant_id", "idempotency_key"),
        sa.Index(None, "tenant_id", "id"),
        sa.Index(None, "tenant_id", "request_digest"),
        sa.Index(None, "dataset_id"),
        sa.Index(None, "status", "sent_at"),
    )

    id: Mapped[str] = id_column()
    tenant_id: Mapped[str] = tenant_column()
    dataset_id: Mapped[str] = mapped_column(ID, sa.ForeignKey("datasets.id"))
    name: Mapped[str] = mapped_column(NAME)
    status: Mapped[SweepStatus] = mapped_column(text_enum(SweepStatus, name="status"))
    spec: Mapped[dict[str, Any]]
    """``peft_engine.configs.SweepSpec``, its references decided."""
    version: Mapped[int] = mapped_column(default=0)
    """Raised by whoever changes it: what was decided on an older one is decided anew."""
    settled: Mapped[int] = mapped_column(default=-1)
    """How many of its jobs had ended when it was last gone on with; -1: it waits to be."""
    sent_at: Mapped[datetime] = mapped_column(default=now())
    """When the last message for it went out."""
    best_job_id: Mapped[str | None] = mapped_column(ID)
    test_job_id: Mapped[str | None] = mapped_column(ID)
    """The best trial once more, with the test."""
    comparison: Mapped[dict[str, Any] | None]
    """How clearly the best trial is the best."""
    error: Mapped[dict[str, Any] | None]
    idempotency_key: Mapped[str | None] = mapped_column(sa.String(255))
    request_digest: Mapped[str | None] = mapped_column(DIGEST)
    created_at: Mapped[datetime] = created_column()
    updated_at: Mapped[datetime] = updated_column()
    finished_at: Mapped[datetime | None]


class SweepTrial(Base):
    """One point of a sweep; its number is made once, whoever makes it."""

    __tablename__ = "sweep_trials"
    __table_args__ = (sa.UniqueConstraint("job_id"),)

    sweep_id: Mapped[str] = mapped_column(ID, sa.ForeignKey("sweeps.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant_id: Mapped[str] = tenant_column()
    params: Mapped[dict[str, Any]]
    """Value by path of the field."""
    job_id: Mapped[str | None] = mapped_column(ID, sa.ForeignKey("jobs.id"))
    """None: the values go together in no job; ``error`` says why."""
    error: Mapped[dict[str, Any] | None]


class ValidationDraw(Base):
    """The deciding metric over resamples of the validation split, of a job without a test."""

    __tablename__ = "validation_draws"

    job_id: Mapped[str] = mapped_column(ID, sa.ForeignKey("jobs.id"), primary_key=True)
    metric: Mapped[str] = mapped_column(NAME, primary_key=True)
    tenant_id: Mapped[str] = tenant_column()
    rows: Mapped[int]
    """How many were drawn from."""
    pairing: Mapped[str] = mapped_column(DIGEST)
    """Digest of the resamples."""
    draws: Mapped[bytes]
    """Little-endian doubles, one a resample."""
