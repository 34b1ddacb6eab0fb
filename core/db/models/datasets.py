"""Data sets, and the parts in which large files come."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base, text_enum
from core.db.models.columns import (
    DIGEST,
    ID,
    NAME,
    created_column,
    id_column,
    tenant_column,
    updated_column,
)
from core.states import DatasetStatus, UploadStatus


class Dataset(Base):
    """Validated records; the rows themselves are objects in storage."""

    __tablename__ = "datasets"
    __table_args__ = (
        sa.UniqueConstraint("tenant_id", "idempotency_key"),
        sa.Index(None, "tenant_id", "id"),
        sa.Index(None, "tenant_id", "request_digest"),
        sa.Index(None, "status", "updated_at"),
    )

    id: Mapped[str] = id_column()
    tenant_id: Mapped[str] = tenant_column()
    name: Mapped[str] = mapped_column(NAME)
    task: Mapped[str | None] = mapped_column(NAME)
    """None until recognised."""
    status: Mapped[DatasetStatus] = mapped_column(text_enum(DatasetStatus, name="status"))
    reason: Mapped[str | None] = mapped_column(sa.Text)
    format: Mapped[str | None] = mapped_column(sa.String(20))
    filename: Mapped[str | None] = mapped_column(sa.String(255))
    bytes: Mapped[int | None] = mapped_column(sa.BigInteger)
    rows: Mapped[int | None] = mapped_column(sa.BigInteger)
    sha256: Mapped[str | None] = mapped_column(sa.String(64))
    """Of the bytes as uploaded."""
    request: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What was asked: task, format, mapping, split, and the storage keys of the uploads."""
    splits: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """``{split: {key, rows, sha256, marks?}}`` of the canonical JSONL objects; see
    ``core.storage.splits``."""
    report: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    idempotency_key: Mapped[str | None] = mapped_column(sa.String(255))
    request_digest: Mapped[str | None] = mapped_column(DIGEST)
    created_at: Mapped[datetime] = created_column()
    updated_at: Mapped[datetime] = updated_column()
    deleted_at: Mapped[datetime | None]


class Upload(Base):
    """A file that comes in parts, until they are joined."""

    __tablename__ = "uploads"
    __table_args__ = (
        sa.Index(None, "tenant_id", "status"),
        sa.Index(None, "status", "expires_at"),
    )

    id: Mapped[str] = id_column()
    tenant_id: Mapped[str] = tenant_column()
    filename: Mapped[str] = mapped_column(sa.String(255))
    purpose: Mapped[str] = mapped_column(NAME)
    bytes: Mapped[int] = mapped_column(sa.BigInteger)
    """As announced; the parts that are joined must have as many."""
    status: Mapped[UploadStatus] = mapped_column(text_enum(UploadStatus, name="status"))
    part_ids: Mapped[list[str] | None]
    """In the order in which they were joined; None until then."""
    file_id: Mapped[str | None] = mapped_column(ID)
    """What they became; no foreign key, since the purpose decides in which table it stands."""
    created_at: Mapped[datetime] = created_column()
    expires_at: Mapped[datetime]


class UploadPart(Base):
    """Bytes of an upload in storage; the row goes when nothing needs them any more."""

    __tablename__ = "upload_parts"
    __table_args__ = (sa.Index(None, "upload_id"),)

    id: Mapped[str] = id_column()
    upload_id: Mapped[str] = mapped_column(ID, sa.ForeignKey("uploads.id"))
    tenant_id: Mapped[str] = tenant_column()
    bytes: Mapped[int] = mapped_column(sa.BigInteger)
    created_at: Mapped[datetime] = created_column()
