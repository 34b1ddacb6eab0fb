"""On Postgres a lease is compared with the database's clock, never with a worker's."""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from core.db import clock
from core.db.jobs.leases import is_expired
from core.db.models import Job


def test_postgres_compares_leases_by_its_own_clock() -> None:
    condition = is_expired().compile(dialect=postgresql.dialect())
    assert "clock_timestamp()" in str(condition)
    assert not any("time" in type(value).__name__ for value in condition.params.values())


def test_a_lease_is_a_span_and_the_moment_is_the_database_s() -> None:
    statement = sa.update(Job).values(lease_until=clock.later(15), updated_at=clock.now())
    on_postgres = statement.compile(dialect=postgresql.dialect())
    assert "clock_timestamp() + make_interval(secs => " in str(on_postgres)
    assert list(on_postgres.params.values()) == [15.0]
    on_sqlite = statement.compile(dialect=sqlite.dialect())
    assert "strftime('%Y-%m-%d %H:%M:%f', 'now'" in str(on_sqlite)
    assert list(on_sqlite.params.values()) == [15.0]
