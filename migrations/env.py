"""How Alembic reaches the database: one transaction for all migrations, one process at a time.

On SQLite the transaction begins IMMEDIATE, which is the lock; on Postgres an advisory lock is taken
in it. Whoever comes second finds the work done.
"""

import sqlalchemy as sa
from alembic import context

from core.db import models  # noqa: F401 its import fills the metadata
from core.db.base import Base
from core.db.engine import make_engine
from core.settings import load_settings

# any number that nothing else in the database locks
_LOCK = 7_083_420_260_711


def run() -> None:
    """Migrate the database that the caller named, or else the one of the settings."""
    url = context.config.attributes.get("database_url") or load_settings().database_url
    engine = make_engine(url, pool_size=1, migrating=True)
    on_postgres = engine.dialect.name == "postgresql"
    try:
        with engine.connect() as connection:
            context.configure(
                connection=connection,
                target_metadata=Base.metadata,
                # SQLite cannot alter most of a table: Alembic builds a new one and copies
                render_as_batch=not on_postgres,
                # true of SQLite as soon as the driver does not begin and commit on its own
                transactional_ddl=True,
                compare_type=True,
            )
            with context.begin_transaction():
                if on_postgres:
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
                context.run_migrations()
    finally:
        engine.dispose()


run()
