"""The api in front of a real inference process: aliases and comparisons with real weights."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from app.main import create_app
from core.db import adapters, nodes, open_database, tenants
from core.db.migrate import upgrade
from core.db.models import Adapter
from core.settings import Settings
from tests.service.app.running import run_server
from tests.service.inference.conftest import (
    PATIENCE_SECONDS,
    Process,
    Shelf,
    Start,
    Stored,
    wait_until,
)


@contextmanager
def _api(settings: Settings, process: Process) -> Iterator[httpx.Client]:
    database = open_database(settings)
    with database.write() as session:
        tenant = tenants.ensure_tenant(session, name="default")
        key = tenants.create_key(session, tenant.id, name="first").secret

    def announced() -> bool:
        with database.read() as session:
            return any(node.status == "ready" for node in nodes.list_live(session))

    wait_until(announced)
    database.dispose()
    chosen = settings.model_copy(update={"inference_url": str(process.client.base_url)})
    with (
        run_server(create_app(chosen)) as url,
        httpx.Client(
            base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=30
        ) as client,
    ):
        yield client


@pytest.fixture
def api(settings: Settings, start: Start) -> Iterator[httpx.Client]:
    """The api with the one tenant's key, in front of an inference process on tiny bases."""
    upgrade(settings.database_url)
    with _api(settings, start()) as client:
        yield client


def publish(settings: Settings, stored: Stored, name: str) -> Adapter:
    database = open_database(settings)
    manifest = stored.delta.manifest
    with database.write() as session:
        row = adapters.publish(
            session,
            tenant_id=tenants.ensure_tenant(session, name="default").id,
            name=name,
            base_model=manifest.base_model,
            base_fingerprint=manifest.base_fingerprint,
            task=manifest.task,
            methods=[method.model_dump(mode="json") for method in manifest.methods],
            parameters=1,
            bytes=stored.delta.bytes,
            digest=stored.delta.digest,
            key=stored.reference["key"],
            labels=list(manifest.labels or ()),
        )
    database.dispose()
    return row


def ask(api: httpx.Client, **body: Any) -> dict[str, Any]:
    response = api.post("/predict", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_an_alias_moves_between_real_weights(
    api: httpx.Client, settings: Settings, shelf: Shelf
) -> None:
    stored = [shelf.put("bert", seed=seed) for seed in (1, 2)]
    first, second = (publish(settings, one, "intents") for one in stored)
    inputs = ["where is my card", "refund my order"]
    alone = [ask(api, adapter_id=row.id, inputs=inputs)["outputs"] for row in (first, second)]
    assert alone[0] != alone[1]

    seen = []
    for version in (1, 2):
        api.put("/aliases/prod", json={"adapter_id": f"intents@{version}"}).raise_for_status()
        seen.append(ask(api, adapter_id="prod", inputs=inputs))
    api.post("/aliases/prod:rollback").raise_for_status()
    seen.append(ask(api, adapter_id="prod", inputs=inputs))
    told = [(one["receipt"]["adapter_digest"], one["receipt"]["alias_revision"]) for one in seen]
    assert told == [(first.digest, 1), (second.digest, 2), (first.digest, 3)]
    for answer, oracle in zip(seen, (alone[0], alone[1], alone[0]), strict=True):
        _same(answer["outputs"], oracle)


def test_a_comparison_is_what_each_says_alone(
    api: httpx.Client, settings: Settings, shelf: Shelf
) -> None:
    rows = [publish(settings, shelf.put("bert", seed=seed), "intents") for seed in (1, 2)]
    inputs = ["where is my card", "refund my order"]
    answer = ask(api, adapter_id="intents", inputs=inputs, compare=[None, "intents@1"])
    base, older = answer["comparison"]
    _same(answer["outputs"], ask(api, adapter_id=rows[1].id, inputs=inputs)["outputs"])
    _same(older["outputs"], ask(api, adapter_id=rows[0].id, inputs=inputs)["outputs"])
    labels = {"labels": ["card", "order", "refund"]}
    _same(base["outputs"], ask(api, base_model="bert", inputs=inputs, options=labels)["outputs"])
    digests = [answer["receipt"], base["receipt"], older["receipt"]]
    assert [receipt["adapter_digest"] for receipt in digests] == [
        rows[1].digest,
        None,
        rows[0].digest,
    ]


def test_embeddings_of_adapters_and_of_their_base(
    api: httpx.Client, settings: Settings, shelf: Shelf
) -> None:
    publish(settings, shelf.put("bert", seed=1), "intents")
    inputs: list[Any] = ["where is my card", {"text": "refund", "text_pair": "my order"}]
    answer = ask(api, adapter_id="intents", task="embedding", inputs=inputs, compare=[None])
    plain = ask(api, base_model="bert", task="embedding", inputs=inputs)
    for one, other in zip(answer["comparison"][0]["outputs"], plain["outputs"], strict=True):
        assert one["embedding"] == pytest.approx(other["embedding"], abs=1e-5)
    own, base = answer["outputs"][0]["embedding"], plain["outputs"][0]["embedding"]
    assert sum(x * x for x in own) == pytest.approx(1, abs=1e-5)
    assert sum(x * y for x, y in zip(own, base, strict=True)) < 0.99
    assert answer["receipt"]["adapter"] == "intents@1"
    mixed = [inputs[0], {"adapter_id": None, "base_model": "llama", "text": "hi"}]
    refused = api.post(
        "/predict", json={"adapter_id": "intents", "task": "embedding", "inputs": mixed}
    )
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == ("task_mismatch", "inputs.1.task")


def test_text_beside_the_text_of_the_base(
    api: httpx.Client, settings: Settings, shelf: Shelf
) -> None:
    publish(settings, shelf.put("llama", seed=3), "texts")
    options = {"max_new_tokens": 8, "temperature": 0}
    answer = ask(api, adapter_id="texts", inputs=["my card"], compare=[None], options=options)
    (base,) = answer["comparison"]
    alone = ask(api, base_model="llama", inputs=["my card"], options=options)
    assert base["outputs"] == alone["outputs"]
    assert base["outputs"] != answer["outputs"]


def test_an_adapter_is_not_deleted_while_it_answers(
    settings: Settings, start: Start, shelf: Shelf, crowd: ThreadPoolExecutor
) -> None:
    upgrade(settings.database_url)
    process = start()
    kept, other = (publish(settings, shelf.put("bert", seed=seed), "intents") for seed in (1, 2))
    uses = process.parts.predictor.uses
    with _api(settings, process) as api:
        with process.owner_held():
            waiting = crowd.submit(ask, api, adapter_id=kept.id, inputs=["my card", "my order"])
            wait_until(lambda: uses.count(kept.id) == 1)
            refused = api.delete(f"/adapters/{kept.id}")
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "adapter_in_use")
            assert api.delete(f"/adapters/{other.id}").status_code == 200
        assert waiting.result(PATIENCE_SECONDS)["receipt"]["adapter_digest"] == kept.digest
        wait_until(lambda: uses.count(kept.id) == 0)
        assert api.delete(f"/adapters/{kept.id}").status_code == 200
        assert api.post("/predict", json={"adapter_id": kept.id, "inputs": ["a"]}).is_error


def _same(found: list[dict[str, Any]], oracle: list[dict[str, Any]]) -> None:
    """Equal up to rounding, which depends on the neighbours in a batch."""
    for one, other in zip(found, oracle, strict=True):
        assert one["label"] == other["label"]
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)
