"""The api and an inference process on tiny bases, asked by the official client."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from app.main import create_app
from core.db import Database, Session, adapters, aliases, tenants
from core.db.migrate import upgrade
from core.db.models import Adapter
from core.settings import load_settings
from core.storage import open_store
from inference.parts import make_parts
from inference.server import create_app as create_inference
from peft_engine.bases.base import Base
from tests.service.app.keys import create_first_keys
from tests.service.app.running import run_server
from tests.service.inference.conftest import Shelf, Stored, one_thread, tiny_bases
from tests.service.inference.twin_vllm import TwinVllm

__all__ = ["one_thread", "tiny_bases"]


@dataclass(frozen=True)
class House:
    """A running service with two adapters.

    Attributes:
        client: The official client with a key of the tenant that owns them.
        other: The same for another tenant.
        shelf: Where tests put more deltas.
        texts: ``menu`` of the tiny llama.
        intents: ``intents`` of the tiny bert.
    """

    database: Database
    client: OpenAI
    other: OpenAI
    shelf: Shelf
    texts: Stored
    intents: Stored

    def tenant_id(self, session: Session) -> str:
        """Whose client ``client`` is."""
        return tenants.ensure_tenant(session, name="default").id

    def publish(self, stored: Stored, name: str) -> Adapter:
        """Publish a stored delta as a worker would."""
        manifest = stored.delta.manifest
        with self.database.write() as session:
            return adapters.publish(
                session,
                tenant_id=self.tenant_id(session),
                name=name,
                base_model=manifest.base_model,
                base_fingerprint=manifest.base_fingerprint,
                task=manifest.task,
                methods=[{"type": "lora", "r": 4}],
                parameters=1,
                bytes=1,
                digest=stored.delta.digest,
                key=stored.reference["key"],
                labels=list(manifest.labels) if manifest.labels else None,
            )

    def alias(self, name: str, adapter_id: str) -> None:
        with self.database.write() as session:
            aliases.move(session, self.tenant_id(session), name, adapter_id)


def open_clients(stack: ExitStack, database: Database, url: str) -> list[OpenAI]:
    """The official client with a key of the first tenant, and one with a key of another."""
    keys = create_first_keys(database)
    return [
        stack.enter_context(OpenAI(base_url=f"{url}/v1", api_key=key, timeout=30)) for key in keys
    ]


@contextmanager
def open_house(folder: Path, bases: dict[str, Base], **changes: Any) -> Iterator[House]:
    """Start the service with settings of the test's own."""
    settings = load_settings(
        data_dir=folder,
        base_models={name: base.reference for name, base in bases.items()},
        threads=1,
        device="cpu",
        **changes,
    )
    upgrade(settings.database_url)
    with ExitStack() as stack:
        parts = make_parts(settings)
        url = stack.enter_context(run_server(create_inference(settings, parts)))
        for served in parts.bases.all():
            served.loaded.result(30)
        database = Database(settings.database_url)
        stack.callback(database.dispose)
        own = settings.model_copy(update={"inference_url": url})
        face = stack.enter_context(run_server(create_app(own)))
        clients = open_clients(stack, database, face)
        shelf = Shelf(open_store(settings), bases)
        texts, intents = shelf.put("llama", seed=1), shelf.put("bert", seed=1)
        house = House(database, *clients, shelf, texts, intents)
        house.publish(house.texts, "menu")
        house.publish(house.intents, "intents")
        yield house


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, tiny_bases: dict[str, Base]) -> Iterator[House]:
    """Our own engine writes."""
    with open_house(tmp_path_factory.mktemp("own"), tiny_bases) as opened:
        yield opened


@pytest.fixture(scope="module")
def vllm_house(
    tmp_path_factory: pytest.TempPathFactory, tiny_bases: dict[str, Base]
) -> Iterator[House]:
    """A vLLM server writes, behind our queue."""
    folder = tmp_path_factory.mktemp("vllm")
    with run_server(TwinVllm(tiny_bases["llama"]).app) as url:
        changes = {"vllm_url": url, "vllm_base_model": "llama", "vllm_adapters_dir": folder / "for"}
        with open_house(folder / "data", tiny_bases, **changes) as opened:
            yield opened


@pytest.fixture(params=["tunery", "vllm"])
def either(request: pytest.FixtureRequest) -> House:
    """The service, with the one and the other who writes."""
    names = {"tunery": "house", "vllm": "vllm_house"}
    found = request.getfixturevalue(names[request.param])
    assert isinstance(found, House)
    return found
