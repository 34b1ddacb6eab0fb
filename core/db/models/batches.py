"""Files of requests and answers, and the batches between them."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base, text_enum
from core.db.models.columns import DIGEST, ID, NAME, created_column, id_column, tenant_column
from core.states import BatchStatus


class File(Base):
    """Bytes that are kept as they came: the requests of a batch, and their answers."""

    __tablename__ = "files"
    __table_args__ = (
        sa.UniqueConstraint("tenant_id", "idempotency_key"),
        sa.Index(None, "tenant_id", "id"),
        sa.Index(None, "tenant_id", "request_digest"),
    )

    id: Mapped[str] = id_column()
    tenant_id: Mapped[str] = tenant_column()
    purpose: Mapped[str] = mapped_column(sa.String(20))
    """``batch`` or ``batch_output``."""
    filename: Mapped[str] = mapped_column(sa.String(255))
    bytes: Mapped[int] = mapped_column(sa.BigInteger)
    sha256: Mapped[str] = mapped_column(sa.String(64))
    key: Mapped[str] = mapped_column(sa.String(255))
    """Where the bytes lie in storage."""
    idempotency_key: Mapped[str | None] = mapped_column(sa.String(255))
    request_digest: Mapped[str | None] = mapped_column(DIGEST)
    created_at: Mapped[datetime] = created_column()
    deleted_at: Mapped[datetime | None]


class Batch(Base):
    """Requests of one file, answered one by one; ``attempt`` fences its writers."""

    __tablename__ = "batches"
    __table_args__ = (
        sa.UniqueConstraint("tenant_id", "idempotency_key"),
        sa.Index(None, "tenant_id", "id"),
        sa.Index(None, "tenant_id", "request_digest"),
        sa.Index(None, "input_file_id"),
        sa.Index(None, "status", "lease_until"),
    )

    id: Mapped[str] = id_column()
    tenant_id: Mapped[str] = tenant_column()
    endpoint: Mapped[str] = mapped_column(NAME)
    """Path that every request goes to."""
    input_file_id: Mapped[str] = mapped_column(ID, sa.ForeignKey("files.id"))
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    status: Mapped[BatchStatus] = mapped_column(text_enum(BatchStatus, name="status"))
    errors: Mapped[dict[str, Any] | None]
    """``{data: [{code, line, message, param}], total}``: why it failed."""
    output_file_id: Mapped[str | None] = mapped_column(ID, sa.ForeignKey("files.id"))
    error_file_id: Mapped[str | None] = mapped_column(ID, sa.ForeignKey("files.id"))
    requests: Mapped[int] = mapped_column(default=0)
    """How many there are; 0 until they are validated."""
    kept: Mapped[int] = mapped_column(default=0)
    """How many of them, from the first on, have their answer in a part."""
    completed: Mapped[int] = mapped_column(default=0)
    failed: Mapped[int] = mapped_column(default=0)
    attempt: Mapped[int] = mapped_column(default=0)
    losses: Mapped[int] = mapped_column(default=0)
    """Attempts since the last part was kept that did not end in order."""
    owner: Mapped[str | None] = mapped_column(sa.String(255))
    lease_until: Mapped[datetime | None]
    """In the past: since when nobody has it; None: nobody has had it, or it has ended."""
    idempotency_key: Mapped[str | None] = mapped_column(sa.String(255))
    request_digest: Mapped[str | None] = mapped_column(DIGEST)
    created_at: Mapped[datetime] = created_column()
    expires_at: Mapped[datetime]
    in_progress_at: Mapped[datetime | None]
    finalizing_at: Mapped[datetime | None]
    cancelling_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    failed_at: Mapped[datetime | None]
    expired_at: Mapped[datetime | None]
    cancelled_at: Mapped[datetime | None]


class BatchPart(Base):
    """Answers that a batch which has not ended already has; one object in storage."""

    __tablename__ = "batch_parts"
    __table_args__ = (sa.Index(None, "key"),)

    batch_id: Mapped[str] = mapped_column(ID, sa.ForeignKey("batches.id"), primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(10), primary_key=True)
    """``output`` or ``error``: of which file it is a part."""
    first: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """Place, from 0, of the first request that was answered with it; parts are joined in order."""
    tenant_id: Mapped[str] = tenant_column()
    key: Mapped[str] = mapped_column(sa.String(255))
