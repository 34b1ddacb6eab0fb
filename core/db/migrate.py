"""Bringing a database to the present tables."""

import importlib.util
import shutil
import sqlite3
import threading
from pathlib import Path

import alembic.command
from alembic.config import Config
from sqlalchemy.exc import OperationalError

from core.db.engine import parse_url
from core.errors import Unavailable

# Alembic keeps its present run in module globals: two threads would end each other's
_ALEMBIC = threading.Lock()
# what the tables of an empty database and its log take, at the least
_ROOM_BYTES = 1 << 20
# SQLite gives up at once, without its busy timeout, where waiting could never end; trying again
# from the start can. Each try waits for that timeout too.
_BUSY_TRIES = 10
_BUSY_PAUSE_SECONDS = 0.3


def make_config(database_url: str) -> Config:
    """Make Alembic's configuration without a file, so that an installed package can migrate.

    Args:
        database_url: See ``core.db.engine.parse_url``.

    Returns:
        The configuration.

    Raises:
        RuntimeError: The package ``migrations`` is not installed.
    """
    spec = importlib.util.find_spec("migrations")
    if spec is None or spec.origin is None:
        message = "the package 'migrations' is missing: the installation is incomplete"
        raise RuntimeError(message)
    config = Config()
    # Alembic reads % as the start of an interpolation
    config.set_main_option("script_location", str(Path(spec.origin).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["database_url"] = database_url
    return config


def upgrade(database_url: str, revision: str = "head") -> None:
    """Migrate a database; many processes may do so at once, and all return when it is done.

    Args:
        database_url: See ``core.db.engine.parse_url``; the folder of an SQLite file is made.
        revision: How far.

    Raises:
        Unavailable: The database does not answer, or its disk is full.
    """
    _make_folder(database_url)
    try:
        _upgrade_patiently(database_url, revision)
    except OperationalError as error:
        if _lacks_room(database_url, error):
            message = "the disk is full; the database could not be migrated: free some space"
            raise Unavailable(message, code="storage_full") from error
        message = "the database does not answer; it could not be migrated"
        raise Unavailable(message, code="database_unavailable") from error


def _upgrade_patiently(database_url: str, revision: str) -> None:
    """Migrate, again when another process holds an SQLite file: what it did is then found done.

    Raises:
        OperationalError: The database does not answer.
    """
    pause = threading.Event()
    for _ in range(_BUSY_TRIES - 1):
        try:
            with _ALEMBIC:
                alembic.command.upgrade(make_config(database_url), revision)
        except OperationalError as error:
            if "database is locked" not in str(error):
                raise
            pause.wait(_BUSY_PAUSE_SECONDS)
        else:
            return
    with _ALEMBIC:
        alembic.command.upgrade(make_config(database_url), revision)


def downgrade(database_url: str, revision: str) -> None:
    """Take migrations back; data of dropped tables and columns is gone.

    Args:
        database_url: See ``core.db.engine.parse_url``.
        revision: How far; ``base`` for all.
    """
    with _ALEMBIC:
        alembic.command.downgrade(make_config(database_url), revision)


def _make_folder(database_url: str) -> None:
    url = parse_url(database_url)
    if url.get_backend_name() == "sqlite" and url.database is not None:
        # others on this machine may not read what users send
        Path(url.database).parent.mkdir(mode=0o700, parents=True, exist_ok=True)


def _lacks_room(database_url: str, error: OperationalError) -> bool:
    """Whether SQLite failed for want of room; with a write-ahead log it says only "I/O error"."""
    kind = getattr(error.orig, "sqlite_errorcode", None)
    if kind == sqlite3.SQLITE_FULL:
        return True
    database = parse_url(database_url).database
    if kind is None or kind & 0xFF != sqlite3.SQLITE_IOERR or database is None:
        return False
    return shutil.disk_usage(Path(database).parent).free < _ROOM_BYTES
