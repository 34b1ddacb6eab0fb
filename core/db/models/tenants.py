"""Tenants, their keys, and the inference processes, which belong to nobody."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base
from core.db.clock import now
from core.db.models.columns import NAME, created_column, id_column, tenant_column


class Tenant(Base):
    """Owner of everything else."""

    __tablename__ = "tenants"

    id: Mapped[str] = id_column()
    name: Mapped[str] = mapped_column(NAME, unique=True)
    created_at: Mapped[datetime] = created_column()


class ApiKey(Base):
    """A key, known only by its hash."""

    __tablename__ = "api_keys"
    __table_args__ = (sa.Index(None, "tenant_id", "id"),)

    id: Mapped[str] = id_column()
    tenant_id: Mapped[str] = tenant_column()
    name: Mapped[str] = mapped_column(NAME)
    prefix: Mapped[str] = mapped_column(sa.String(16))
    """First characters of the key, to recognise it by."""
    hash: Mapped[str] = mapped_column(sa.String(64), unique=True)
    """SHA-256 in hex; the key itself has 256 random bits, so a slow hash adds nothing."""
    scopes: Mapped[list[str]]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = created_column()


class InferenceNode(Base):
    """An inference process that announced itself; it is alive while ``seen_at`` is fresh."""

    __tablename__ = "inference_nodes"

    id: Mapped[str] = id_column()
    url: Mapped[str] = mapped_column(sa.String(255))
    bases: Mapped[list[Any]]
    device: Mapped[str] = mapped_column(NAME)
    precision: Mapped[dict[str, Any]] = mapped_column(default=dict)
    status: Mapped[str] = mapped_column(sa.String(20))
    started_at: Mapped[datetime] = mapped_column(default=now())
    seen_at: Mapped[datetime] = mapped_column(default=now())
