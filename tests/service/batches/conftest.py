"""The edge with a twin of inference that holds answers back."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from app.main import create_app
from core.db import Database
from core.settings import Settings, load_settings
from tests.service.app.conftest import Edge
from tests.service.app.keys import create_first_keys
from tests.service.app.running import run_server
from tests.service.batches.office import HeldInference, Office


@pytest.fixture(params=["sqlite"])
def database_url(request: pytest.FixtureRequest) -> str:
    """SQLite, but for tests of locks and leases, which name both."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture(params=["directory"])
def storage(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A folder, but for the test that says ``s3``: where objects lie, as settings."""
    if request.param == "directory":
        return {}
    settings: Settings = request.getfixturevalue("s3_settings")
    return settings.model_dump(include={name for name in Settings.model_fields if "s3" in name}) | {
        "storage_url": settings.storage_url
    }


@pytest.fixture
def settings(database_url: str, storage: dict[str, Any], tmp_path: Path) -> Settings:
    """Quick leases: recovery is the same at any pace."""
    return load_settings(
        **storage,
        data_dir=tmp_path / "data",
        database_url=database_url,
        inference_token="between-us",
        lease_seconds=3,
        heartbeat_seconds=0.25,
        max_batch_requests=500,
        max_batch_line_bytes=2500,
        batch_requests_at_once=4,
    )


@pytest.fixture
def office(settings: Settings, database: Database) -> Iterator[Office]:
    """The service, with the adapter ``intents`` and no process of batches yet."""
    with ExitStack() as stack:
        twin = HeldInference()
        inference_url = stack.enter_context(run_server(twin.app))
        chosen = settings.model_copy(update={"inference_url": inference_url})
        secrets = create_first_keys(database)
        url = stack.enter_context(run_server(create_app(chosen)))
        edge = Edge(chosen, database, twin, url, *secrets, stack)
        clients = [
            stack.enter_context(OpenAI(base_url=f"{url}/v1", api_key=key, timeout=30))
            for key in secrets
        ]
        edge.publish("intents")
        opened = Office(edge, twin, *clients)
        stack.callback(opened.close)
        yield opened
