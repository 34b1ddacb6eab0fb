"""Columns that many tables have, and how long texts of one kind may be."""

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from core.db.clock import now

ID = sa.String(40)
NAME = sa.String(64)
DIGEST = sa.String(80)
BASE_NAME = sa.String(128)
"""``peft_engine.configs.base.MAX_BASE_NAME_CHARS``."""
SECRET = sa.String(64)


def id_column() -> Mapped[str]:
    """Key of a row."""
    return mapped_column(ID, primary_key=True)


def tenant_column() -> Mapped[str]:
    """Whose row it is."""
    return mapped_column(ID, sa.ForeignKey("tenants.id"))


def created_column() -> Mapped[datetime]:
    """When the row was made, by the clock of the database."""
    return mapped_column(default=now())


def updated_column() -> Mapped[datetime]:
    """When it was changed last, by the same clock."""
    return mapped_column(default=now(), onupdate=now())
