"""The whole HTTP edge on a real port: real broker, both databases, a twin of inference."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.main import create_app
from core.db import Database, adapters, tenants
from core.db.models import Adapter
from core.settings import Settings, load_settings
from core.storage import delta_key, open_store
from tests.service.app.keys import create_first_keys
from tests.service.app.rows import upload
from tests.service.app.running import run_server
from tests.service.app.twin_inference import TwinInference
from tests.service.servers.valkey import ValkeyServer


@dataclass
class Edge:
    """A running service: a client with a key for each of two tenants, and one without."""

    settings: Settings
    database: Database
    twin: TwinInference
    url: str
    key: str
    other_key: str
    _stack: ExitStack = field(repr=False)

    def client(self, key: str | None = None) -> httpx.Client:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return self._stack.enter_context(
            httpx.Client(base_url=self.url, headers=headers, timeout=30)
        )

    def new_key(self, *scopes: str) -> str:
        with self.database.write() as session:
            tenant = tenants.find_tenant(session, name="default")
            assert tenant is not None
            return tenants.create_key(session, tenant.id, name="limited", scopes=scopes).secret

    def publish(
        self,
        name: str,
        *,
        key: str | None = None,
        base_model: str = "minilm",
        salt: str = "",
        **values: Any,
    ) -> Adapter:
        """Publish an adapter as a worker would, with some bytes in storage."""
        secret = key or self.key
        data = f"delta of {name}{salt}".encode()
        digest = "sha256:" + (name + salt).encode().hex().ljust(64, "0")[:64]
        open_store(self.settings).put_bytes(delta_key(digest), data)
        defaults: dict[str, Any] = {
            "task": "text-classification",
            "methods": [{"type": "lora", "r": 16}],
            "labels": ["a", "b"],
        }
        with self.database.write() as session:
            owner = tenants.authenticate(session, secret)
            assert owner is not None
            return adapters.publish(
                session,
                tenant_id=owner.tenant_id,
                name=name,
                base_model=base_model,
                base_fingerprint="sha256:" + "f" * 64,
                parameters=1000,
                bytes=len(data),
                digest=digest,
                key=delta_key(digest),
                **defaults | values,
            )


@pytest.fixture
def settings(database_url: str, valkey_server: ValkeyServer, tmp_path: Path) -> Settings:
    """Settings of the edge; a test may override this fixture."""
    return load_settings(
        data_dir=tmp_path / "data",
        database_url=database_url,
        broker_url=valkey_server.database(5),
        inference_token="between-us",
        max_upload_bytes=4_000_000,
        max_body_bytes=200_000,
        background_validation_bytes=300_000,
        max_predict_rows=8,
        max_predict_chars=2_000,
    )


@pytest.fixture
def edge(settings: Settings, database: Database) -> Iterator[Edge]:
    """The service, once on each database."""
    with ExitStack() as stack:
        twin = TwinInference()
        inference_url = stack.enter_context(run_server(twin.app))
        chosen = settings.model_copy(update={"inference_url": inference_url})
        secrets = create_first_keys(database)
        url = stack.enter_context(run_server(create_app(chosen)))
        yield Edge(chosen, database, twin, url, *secrets, stack)


@pytest.fixture
def client(edge: Edge) -> httpx.Client:
    """A client of the first tenant with every scope."""
    return edge.client(edge.key)


@pytest.fixture
def other(edge: Edge) -> httpx.Client:
    """A client of another tenant."""
    return edge.client(edge.other_key)


@pytest.fixture
def stranger(edge: Edge) -> httpx.Client:
    """A client without a key."""
    return edge.client()


@pytest.fixture
def dataset_id(client: httpx.Client) -> str:
    return str(upload(client)["id"])
