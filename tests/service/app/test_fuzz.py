"""Requests made up from the description: no 5xx, and every answer is one that is described."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from app.main import create_app
from core.db import Database, tenants
from core.db.migrate import upgrade
from core.settings import load_settings
from tests.service.app.running import run_server
from tests.service.app.twin_inference import TwinInference
from tests.service.servers.valkey import ValkeyServer

# what the framework does or what a stream of bytes cannot express; see the notes of schemathesis
_CONFIG = {
    "generation": {"deterministic": True},
    "checks": {
        "unsupported_method": {"enabled": False},
        "positive_data_acceptance": {"enabled": False},
        "allow_header_conformance": {"enabled": False},
        # it sends a wrong x-api-key beside a right bearer; test_access has the real ones
        "ignored_auth": {"enabled": False},
    },
}


SNAPSHOT = Path(__file__).parents[2] / "unit" / "app" / "openapi.json"

schema = schemathesis.openapi.from_path(SNAPSHOT, config=schemathesis.Config.from_dict(_CONFIG))


@pytest.fixture(scope="module")
def running(
    valkey_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """URL of a running service, and a key for it."""
    with ExitStack() as stack:
        inference_url = stack.enter_context(run_server(TwinInference().app))
        chosen = load_settings(
            data_dir=tmp_path_factory.mktemp("fuzz"),
            broker_url=valkey_server.database(6),
            inference_url=inference_url,
            inference_token="between-us",
        )
        upgrade(chosen.database_url)
        database = Database(chosen.database_url)
        stack.callback(database.dispose)
        with database.write() as session:
            tenant = tenants.ensure_tenant(session, name="default")
            secret = tenants.create_key(session, tenant.id, name="fuzz").secret
        yield stack.enter_context(run_server(create_app(chosen))), secret


@schema.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_as_described(case: schemathesis.Case, running: tuple[str, str]) -> None:
    url, key = running
    case.call_and_validate(base_url=url, headers={"authorization": f"Bearer {key}"})
