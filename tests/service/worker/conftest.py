"""The stage of the worker's tests: a broker, a database, storage, and workers over the twin."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from core.db import Database
from core.settings import Settings, load_settings
from tests.service.servers.valkey import ValkeyServer
from tests.service.worker.stage import Stage, closing

TWIN_APP = "tests.service.worker.twin_app"

# Tests run on SQLite unless they ask for both: what differs is inside ``core.db``, but for locks.
BOTH = ["sqlite", "postgres"]

# Which of the broker's databases is ours.
BROKER_DATABASE = 11


def make_settings(
    folder: Path, database_url: str, valkey: ValkeyServer, **overrides: Any
) -> Settings:
    """Settings under which a lost worker is missed within three seconds, over an empty broker."""
    broker_url = valkey.database(BROKER_DATABASE)
    with redis.Redis.from_url(broker_url) as broker:
        broker.flushdb()
    values: dict[str, Any] = {
        "data_dir": folder,
        "database_url": database_url,
        "broker_url": broker_url,
        "threads": 1,
        "lease_seconds": 3.0,
        "heartbeat_seconds": 0.2,
        "sweep_seconds": 0.5,
        "resend_after_seconds": 1.0,
        "cancel_grace_seconds": 3.0,
        "silence_seconds": 3.0,
        "stall_seconds": 60.0,
    }
    return load_settings(**{**values, **overrides})


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> str:
    """Address of a fresh, migrated database: SQLite, or what the test asks for."""
    return str(request.getfixturevalue(f"{getattr(request, 'param', 'sqlite')}_url"))


@pytest.fixture
def fast_settings(tmp_path: Path, database_url: str, valkey_server: ValkeyServer) -> Settings:
    return make_settings(tmp_path, database_url, valkey_server)


@pytest.fixture
def stage(fast_settings: Settings, database: Database, tmp_path: Path) -> Iterator[Stage]:
    """Rows, objects and messages, and workers that train with the twin."""
    yield from closing(Stage(fast_settings, database, tmp_path, TWIN_APP))
