"""Engines, and the one place where transactions begin and end.

SQLite: WAL, and every writing transaction begins IMMEDIATE, through a pool of one connection: the
driver's own default lost two updates of three when processes wrote together, and a deferred begin
fails with "database is locked" in spite of any timeout. Postgres: one pool, READ COMMITTED.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.orm import Session, sessionmaker

from core.db.base import dump_json
from core.errors import Unavailable
from core.settings import Settings

# a web server's thread pool has 40 threads, each of which may hold one connection
POOL_SIZE = 40
BUSY_MILLISECONDS = 15_000
SQLITE_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=NORMAL",
    f"busy_timeout={BUSY_MILLISECONDS}",
    "foreign_keys=ON",
)
# a host that vanished without a word is noticed within half a minute
POSTGRES_CONNECT = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
# a process that is stopped in the middle of a transaction must not stop the recovery of its job
POSTGRES_PATIENCE_MILLISECONDS = {
    "lock_timeout": 10_000,
    "idle_in_transaction_session_timeout": 30_000,
}


def parse_url(database_url: str) -> URL:
    """Read a database address.

    Args:
        database_url: ``sqlite:///path`` or ``postgresql://…`` (``postgres://…`` is the same).

    Returns:
        The address with the driver that we use.

    Raises:
        ValueError: Another kind of database, or SQLite in memory, which processes cannot share.
    """
    url = make_url(database_url)
    backend = url.drivername.split("+")[0]
    if backend in {"postgres", "postgresql"}:
        return url.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        message = f"database_url names {backend!r}; use sqlite:///path or postgresql://host/name"
        raise ValueError(message)
    if url.database in {None, "", ":memory:"}:
        message = "an SQLite database in memory cannot be shared by processes; give a path"
        raise ValueError(message)
    return url


def make_engine(
    database_url: str, *, pool_size: int = POOL_SIZE, migrating: bool = False
) -> Engine:
    """Make an engine; nothing connects yet.

    Args:
        database_url: See ``parse_url``.
        pool_size: Connections kept; no more are ever opened.
        migrating: True leaves foreign keys of SQLite unchecked, for a migration that rebuilds a
            table.

    Returns:
        The engine.
    """
    url = parse_url(database_url)
    options: dict[str, Any] = {
        "pool_size": pool_size,
        "max_overflow": 0,
        "json_serializer": dump_json,
    }
    if url.get_backend_name() != "sqlite":
        return _make_postgres_engine(url, options, migrating=migrating)
    engine = sa.create_engine(url, **options)
    pragmas = SQLITE_PRAGMAS[:-1] if migrating else SQLITE_PRAGMAS

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        # the driver must not begin transactions on its own: its begin is deferred
        connection.isolation_level = None
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        kind = connection.get_execution_options().get("sqlite_begin", "IMMEDIATE")
        connection.exec_driver_sql(f"BEGIN {kind}")

    return engine


def _make_postgres_engine(url: URL, options: dict[str, Any], *, migrating: bool) -> Engine:
    engine = sa.create_engine(url, pool_pre_ping=True, connect_args=POSTGRES_CONNECT, **options)
    if migrating:
        # a migration may take long, and another may wait for it
        return engine

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        with connection.cursor() as cursor:
            for name, milliseconds in POSTGRES_PATIENCE_MILLISECONDS.items():
                cursor.execute(f"SET SESSION {name} = {milliseconds}")
        connection.commit()

    return engine


class Database:
    """Transactions on one database; safe to share by threads, to be made anew after a fork."""

    def __init__(self, database_url: str) -> None:
        """Make the engines; nothing connects yet.

        Args:
            database_url: See ``parse_url``.
        """
        self._reader = make_engine(database_url)
        self._writer = self._reader
        if self._reader.dialect.name == "sqlite":
            # one writer at a time waits here in order, not in SQLite's retry loop: a tenth of the
            # worst latency
            self._writer = make_engine(database_url, pool_size=1)
            self._reader = self._reader.execution_options(sqlite_begin="DEFERRED")
        self._read = sessionmaker(self._reader, expire_on_commit=False, autoflush=False)
        self._write = sessionmaker(self._writer, expire_on_commit=False)

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self._reader.dialect.name

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Open a transaction that sees one state of the database and is never committed.

        Yields:
            A session; its rows stay usable after the end.
        """
        with _translated(), self._read() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Open a transaction that is committed at the end, or rolled back by an exception.

        On SQLite it holds the one write lock: keep it short, never nest it, never wait for anything
        inside.

        Yields:
            A session; its rows stay usable after the end.
        """
        with _translated(), self._write.begin() as session:
            yield session

    def ping(self) -> None:
        """Ask the database for a sign of life; ``Unavailable`` when there is none."""
        with self.read() as session:
            session.execute(sa.text("SELECT 1"))

    def dispose(self) -> None:
        """Close every connection that is not in use."""
        self._reader.dispose()
        self._writer.dispose()


def open_database(settings: Settings) -> Database:
    """Open the database that the settings name.

    Args:
        settings: The process's settings.

    Returns:
        The database; nothing has connected yet.
    """
    return Database(settings.database_url)


def _is_outage(error: exc.SQLAlchemyError) -> bool:
    if isinstance(error, exc.OperationalError | exc.InterfaceError | exc.TimeoutError):
        return True
    # such as Postgres ending a session that idled in a transaction
    return isinstance(error, exc.DBAPIError) and error.connection_invalidated


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the driver's troubles into ours; SQL and addresses never reach a caller.

    Raises:
        Unavailable: The database does not answer, or its disk is full.
        SQLAlchemyError: Anything else: a fault of ours, or a value that was refused.
    """
    try:
        yield
    except exc.SQLAlchemyError as error:
        if not _is_outage(error):
            raise
        if "disk is full" in str(error) or "No space left" in str(error):
            message = "the database's disk is full; nothing was written"
            raise Unavailable(message, code="storage_full", retry_after_seconds=60) from error
        message = "the database does not answer; try again"
        raise Unavailable(message, code="database_unavailable", retry_after_seconds=2) from error
