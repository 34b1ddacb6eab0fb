"""Column types and naming that hold on SQLite and Postgres alike.

Knows no table.
"""

import json
import math
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
"""Names of constraints, so that a migration can drop what another made, on both databases."""


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """Times that are aware and in UTC in Python on both databases (naive text in SQLite)."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Take a time into the database.

        Args:
            value: An aware time, or None.
            dialect: The database's dialect.

        Returns:
            The time in UTC; naive on SQLite, which knows no zones.

        Raises:
            ValueError: The time is naive: nobody knows which moment is meant.
        """
        if value is None:
            return None
        if value.tzinfo is None:
            message = f"naive time {value!r}: give it a zone"
            raise ValueError(message)
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Take a time out of the database.

        Args:
            value: What the driver gave.
            dialect: The database's dialect.

        Returns:
            The time, aware, in UTC.
        """
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


Json = sa.JSON(none_as_null=True).with_variant(
    postgresql.JSONB(none_as_null=True),
    "postgresql",
)
"""JSON; Python's None is SQL's NULL, so that ``IS NULL`` finds it."""

BigKey = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""Counting key: SQLite counts only a column that is exactly INTEGER."""


def dump_json(value: object) -> str:
    """Write JSON that both databases take.

    Args:
        value: Anything that JSON holds; floats that are not finite become null and NUL characters
            vanish, since Postgres refuses both and a metric or an error message may hold either.

    Returns:
        JSON text.
    """
    return json.dumps(_cleaned(value), ensure_ascii=False, allow_nan=False)


def _cleaned(value: object) -> object:
    if isinstance(value, dict):
        return {_cleaned(str(key)): _cleaned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.replace("\x00", "")
    return value


def text_enum(kind: type[StrEnum], *, name: str, length: int = 20) -> sa.Enum:
    """Make a column type for an enum, kept as text with a check.

    Args:
        kind: The enum; its values, not its names, are stored.
        name: Name of the check constraint.
        length: Characters of the column; room for values that later versions add.

    Returns:
        The column type.
    """
    return sa.Enum(
        kind,
        native_enum=False,
        create_constraint=True,
        length=length,
        name=name,
        values_callable=lambda members: [member.value for member in members],
    )


class Base(DeclarativeBase):
    """Parent of every table."""

    metadata = sa.MetaData(naming_convention=NAMING)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime(),
        dict[str, Any]: Json,
        list[Any]: Json,
        list[str]: Json,
    }
