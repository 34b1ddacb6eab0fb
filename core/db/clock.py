"""The database's clock, as SQL.

Leases are compared by one clock: Postgres's own when several machines claim, this machine's on
SQLite. Both give the present moment, not the start of the transaction.
"""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from core.db.base import UtcDateTime


class now(FunctionElement[datetime]):
    """The present moment."""

    type = UtcDateTime()
    inherit_cache = True


class _later(FunctionElement[datetime]):
    type = UtcDateTime()
    inherit_cache = True


def later(seconds: float) -> sa.ColumnElement[datetime]:
    """Give a moment relative to now.

    Args:
        seconds: How much later; negative for the past.

    Returns:
        An SQL expression.
    """
    return _later(sa.literal(float(seconds), sa.Float()))


@compiles(now, "postgresql")
def _now_on_postgres(_element: Any, _compiler: SQLCompiler, **_options: Any) -> str:
    return "clock_timestamp()"


@compiles(now, "sqlite")
def _now_on_sqlite(_element: Any, _compiler: SQLCompiler, **_options: Any) -> str:
    # the text that SQLAlchemy's DateTime writes, six digits behind the second: text order is then
    # time order
    return "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')"


@compiles(_later, "postgresql")
def _later_on_postgres(element: Any, compiler: SQLCompiler, **options: Any) -> str:
    seconds = compiler.process(element.clauses, **options)
    return f"(clock_timestamp() + make_interval(secs => {seconds}))"


@compiles(_later, "sqlite")
def _later_on_sqlite(element: Any, compiler: SQLCompiler, **options: Any) -> str:
    seconds = compiler.process(element.clauses, **options)
    return f"(strftime('%Y-%m-%d %H:%M:%f', 'now', ({seconds}) || ' seconds') || '000')"
