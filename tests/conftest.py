"""Fixtures that every tier shares: real servers, migrated databases, both kinds of storage.

Servers start once per session, on free loopback ports, when the first test asks for them; none
outlives pytest, even one that is killed. Markers follow folders.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from xdist.scheduler import LoadScopeScheduling

from core.db import Database
from core.db.base import Base
from core.db.migrate import upgrade
from core.settings import ENV_PREFIX, Settings, load_settings
from core.storage import ObjectStore, open_store
from tests.service.servers.postgres import PostgresServer, run_postgres
from tests.service.servers.s3 import S3Server, run_s3
from tests.service.servers.valkey import ValkeyServer, run_valkey

_HERE = Path(__file__).parent
_TIERS = ("unit", "engine", "service", "e2e")
_OWN_SERVICE = frozenset({"test_demo.py", "test_kills.py", "test_remote_stores.py", "test_vllm.py"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test by the folder that it stands in."""
    for item in items:
        tier = item.path.relative_to(_HERE).parts[0]
        if tier in _TIERS:
            item.add_marker(tier)


class _WholeFiles(LoadScopeScheduling):
    """Tests side by side: those of one file in one process, and all that share a service."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::", 1)[0]
        folder, _, name = path.rpartition("/")
        return "e2e" if folder == "tests/e2e" and name not in _OWN_SERVICE else path


def pytest_xdist_auto_num_workers() -> int:
    """One process more than processors: many a test waits for a server, a lease or a deadline."""
    return (os.cpu_count() or 1) + 1


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _WholeFiles(config, log)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine reaches a test."""
    for name in list(os.environ):  # noqa: TID251 to clear it
        if name.startswith(ENV_PREFIX):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[ValkeyServer]:
    """A broker; ``.url`` is its address, ``.database(7)`` one that no other test uses."""
    with run_valkey() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A Postgres; ``.create()`` gives the address of a fresh, empty database."""
    with run_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """An S3 over HTTP; ``.create_bucket()`` gives the name of a fresh one."""
    with run_s3() as server:
        yield server


@pytest.fixture(scope="session")
def _migrated_postgres(postgres_server: PostgresServer) -> str:
    """Address of the one migrated Postgres database that the tests take turns with."""
    url = postgres_server.create()
    upgrade(url)
    return url


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated file to copy."""
    path = tmp_path_factory.mktemp("template") / "tunery.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(_sqlite_template: Path, tmp_path: Path) -> str:
    """Address of a fresh, migrated SQLite database."""
    path = tmp_path / "tunery.db"
    shutil.copy(_sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgres_url(_migrated_postgres: str) -> str:
    """Address of an empty, migrated Postgres database; making one takes 50 times as long."""
    with psycopg.connect(_migrated_postgres) as connection:
        # a test that left a transaction open is told so, not waited for
        connection.execute("SET LOCAL lock_timeout = '10s'")
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table.name)))
    return _migrated_postgres


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Address of a fresh, migrated database: the test runs once on each kind."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A fresh, migrated database: the test runs once on each kind."""
    database = Database(database_url)
    yield database
    database.dispose()


@pytest.fixture
def s3_settings(s3_server: S3Server, tmp_path: Path) -> Settings:
    """Settings whose storage is a fresh bucket."""
    return load_settings(
        data_dir=tmp_path,
        storage_url=f"s3://{s3_server.create_bucket()}/some/prefix",
        s3_endpoint=s3_server.endpoint,
        s3_access_key_id="test",
        s3_secret_access_key="test",
    )


@pytest.fixture
def directory_settings(tmp_path: Path) -> Settings:
    """Settings whose storage is a fresh folder."""
    return load_settings(data_dir=tmp_path)


@pytest.fixture(params=["directory", "s3"])
def storage_settings(request: pytest.FixtureRequest) -> Settings:
    """Settings with fresh storage: the test runs once on each kind."""
    settings = request.getfixturevalue(f"{request.param}_settings")
    assert isinstance(settings, Settings)
    return settings


@pytest.fixture
def object_store(storage_settings: Settings) -> ObjectStore:
    """Fresh storage: the test runs once on each kind."""
    return open_store(storage_settings)
