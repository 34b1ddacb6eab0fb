"""Published deltas, the names that point to them, and what is known of their tests."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base, text_enum
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
from core.states import AliasAction


class Adapter(Base):
    """A published delta; immutable but for ``deleted_at``."""

    __tablename__ = "adapters"
    __table_args__ = (
        sa.UniqueConstraint("tenant_id", "name", "version"),
        sa.Index(None, "tenant_id", "idempotency_key", unique=True),
        sa.Index(None, "tenant_id", "request_digest"),
        # one job publishes once, whatever its attempts do
        sa.UniqueConstraint("job_id"),
        sa.Index(None, "tenant_id", "id"),
        sa.Index(None, "key"),
        sa.Index(None, "parent_adapter_id"),
    )

    id: Mapped[str] = id_column()
    tenant_id: Mapped[str] = tenant_column()
    name: Mapped[str] = mapped_column(NAME)
    version: Mapped[int]
    job_id: Mapped[str | None] = mapped_column(ID, sa.ForeignKey("jobs.id"))
    dataset_id: Mapped[str | None] = mapped_column(ID, sa.ForeignKey("datasets.id"))
    parent_adapter_id: Mapped[str | None] = mapped_column(ID, sa.ForeignKey("adapters.id"))
    base_model: Mapped[str] = mapped_column(BASE_NAME)
    base_fingerprint: Mapped[str] = mapped_column(DIGEST)
    task: Mapped[str] = mapped_column(NAME)
    methods: Mapped[list[Any]]
    labels: Mapped[list[Any] | None]
    parameters: Mapped[int] = mapped_column(sa.BigInteger)
    bytes: Mapped[int] = mapped_column(sa.BigInteger)
    digest: Mapped[str] = mapped_column(DIGEST)
    key: Mapped[str] = mapped_column(sa.String(255))
    """Where the delta lies in storage; the same digest of several tenants is one object."""
    template_digest: Mapped[str | None] = mapped_column(DIGEST)
    metrics: Mapped[dict[str, Any] | None]
    certificate: Mapped[dict[str, Any] | None]
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata", default=dict)
    origin: Mapped[dict[str, Any] | None]
    """Of an adapter that no job has ended with: brought along, merged, or a checkpoint. Its format,
    where it comes from, and what was decided on the way."""
    idempotency_key: Mapped[str | None] = mapped_column(sa.String(255))
    request_digest: Mapped[str | None] = mapped_column(DIGEST)
    created_at: Mapped[datetime] = created_column()
    deleted_at: Mapped[datetime | None]


class Alias(Base):
    """A name that points to an adapter, until it is moved."""

    __tablename__ = "aliases"
    __table_args__ = (
        sa.UniqueConstraint("tenant_id", "name"),
        sa.Index(None, "adapter_id"),
    )

    id: Mapped[str] = id_column()
    tenant_id: Mapped[str] = tenant_column()
    name: Mapped[str] = mapped_column(NAME)
    adapter_id: Mapped[str] = mapped_column(ID, sa.ForeignKey("adapters.id"))
    revision: Mapped[int]
    """Number of the move that brought it where it points."""
    created_at: Mapped[datetime] = created_column()
    updated_at: Mapped[datetime] = updated_column()


class AliasMove(Base):
    """One move of an alias; never changed, and kept when the alias is deleted."""

    __tablename__ = "alias_moves"

    tenant_id: Mapped[str] = mapped_column(ID, sa.ForeignKey("tenants.id"), primary_key=True)
    name: Mapped[str] = mapped_column(NAME, primary_key=True)
    revision: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """1, 2, … for a name, also across its deletion."""
    action: Mapped[AliasAction] = mapped_column(text_enum(AliasAction, name="action"))
    adapter_id: Mapped[str | None] = mapped_column(ID, sa.ForeignKey("adapters.id"))
    """None: the alias was deleted."""
    previous_adapter_id: Mapped[str | None] = mapped_column(ID, sa.ForeignKey("adapters.id"))
    restored_revision: Mapped[int | None]
    """The revision that a rollback went back to."""
    gate: Mapped[dict[str, Any] | None]
    """What the gate found, when one was asked for."""
    created_at: Mapped[datetime] = created_column()


class MetricDraw(Base):
    """One metric of an adapter over resamples of its test split."""

    __tablename__ = "metric_draws"

    adapter_id: Mapped[str] = mapped_column(ID, sa.ForeignKey("adapters.id"), primary_key=True)
    metric: Mapped[str] = mapped_column(NAME, primary_key=True)
    tenant_id: Mapped[str] = tenant_column()
    test_sha256: Mapped[str] = mapped_column(sa.String(64))
    """Of the test split's records."""
    rows: Mapped[int]
    """How many of them were drawn from."""
    max_length: Mapped[int]
    """Tokens after which a row was cut."""
    pairing: Mapped[str] = mapped_column(DIGEST)
    """Digest of the resamples."""
    value: Mapped[float] = mapped_column(sa.Double)
    lower_is_better: Mapped[bool]
    deciding: Mapped[bool]
    """Whether the best step was chosen by this metric."""
    draws: Mapped[bytes]
    """Little-endian doubles, one a resample."""
