"""``/predict`` over HTTP: which adapter answers which row, and what is refused."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from core.db import adapters, tenants
from tests.service.app.conftest import Edge
from tests.service.app.rows import error_of
from tests.service.app.twin_inference import FINGERPRINT, LONG


def ask(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post("/predict", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def refused(client: httpx.Client, **body: Any) -> tuple[int, str, str | None]:
    response = client.post(
        "/predict", content=json.dumps(body), headers={"content-type": "application/json"}
    )
    error = error_of(response)
    return response.status_code, error["code"], error["param"]


def test_rows_of_one_adapter_share_a_receipt(client: httpx.Client, edge: Edge) -> None:
    adapter = edge.publish("intents")
    answer = ask(client, adapter_id="intents", inputs=["one", {"text": "two"}])
    assert [output["by"] for output in answer["outputs"]] == [adapter.id] * 2
    assert answer["receipt"] == {
        "adapter_id": adapter.id,
        "adapter": "intents@1",
        "job_id": None,
        "step": None,
        "alias": None,
        "alias_revision": None,
        "adapter_digest": adapter.digest,
        "base_model": "minilm",
        "base_fingerprint": FINGERPRINT,
        "template_digest": answer["receipt"]["template_digest"],
        "engine": "twin",
    }
    assert answer["receipts"] == [answer["receipt"]] * 2
    assert answer["usage"] == {"input_tokens": 2, "output_tokens": 0}
    assert edge.twin.rows[0]["delta"] == {
        "adapter_id": adapter.id,
        "digest": adapter.digest,
        "key": adapter.key,
    }


def test_rows_of_many_adapters_and_the_base(client: httpx.Client, edge: Edge) -> None:
    first, second, other = edge.publish("one"), edge.publish("one"), edge.publish("two")
    answer = ask(
        client,
        adapter_id="two",
        base_model="minilm",
        options={"labels": ["a", "b"]},
        inputs=[
            "default",
            {"adapter_id": "one", "text": "newest"},
            {"adapter_id": "one@1", "input": "pinned"},
            {"adapter_id": first.id, "input": {"text": "by id"}},
            {"adapter_id": None, "input": "plain"},
        ],
    )
    assert [output["by"] for output in answer["outputs"]] == [
        other.id,
        second.id,
        first.id,
        first.id,
        None,
    ]
    assert [row["input"] for row in edge.twin.rows] == [
        "default",
        {"text": "newest"},
        "pinned",
        {"text": "by id"},
        "plain",
    ]
    assert [row["options"] for row in edge.twin.rows] == [{}, {}, {}, {}, {"labels": ["a", "b"]}]
    assert answer["receipt"] is None
    assert [receipt["adapter_id"] for receipt in answer["receipts"]] == [
        other.id,
        second.id,
        first.id,
        first.id,
        None,
    ]


def test_the_plain_base(client: httpx.Client, edge: Edge) -> None:
    answer = ask(client, base_model="smollm2", task="text-generation", inputs=["hello"])
    assert answer["receipt"]["adapter_id"] is None
    assert edge.twin.rows[0]["delta"] is None
    assert edge.twin.rows[0]["task"] == "text-generation"


def test_options_of_one_row(client: httpx.Client, edge: Edge) -> None:
    edge.publish("one")
    rows = [{"adapter_id": None, "input": "a", "options": {"labels": ["x", "y"]}}, "b"]
    answer = ask(client, adapter_id="one", inputs=rows)
    assert [receipt["base_model"] for receipt in answer["receipts"]] == ["minilm", "minilm"]
    assert [row["options"] for row in edge.twin.rows] == [{"labels": ["x", "y"]}, {}]
    wrong = [{"input": "a", "options": {"seed": -1}}]
    assert refused(client, adapter_id="one", inputs=wrong)[2] == "inputs.0.options.seed"
    wrong = [{"input": "a", "options": 7}]
    assert refused(client, adapter_id="one", inputs=wrong)[2] == "inputs.0.options"
    unused = refused(client, adapter_id="one", inputs=["a"], options={"temperature": 0})
    assert unused == (400, "bad_input", "options.temperature")


def test_an_adapter_that_is_not_there_is_never_the_base(client: httpx.Client, edge: Edge) -> None:
    edge.publish("one")
    missing = "adapter_not_found"
    assert refused(client, adapter_id="none", inputs=["a"]) == (404, missing, "adapter_id")
    assert refused(client, adapter_id="one@2", inputs=["a"]) == (404, missing, "adapter_id")
    rows = ["a", {"adapter_id": "nobody", "input": "b"}]
    assert refused(client, adapter_id="one", base_model="minilm", inputs=rows) == (
        404,
        missing,
        "inputs.1.adapter_id",
    )
    for name in ("", "x" * 300, "nul\0", "half \ud800", "a' OR 1=1 --", "../../etc", "🤖"):
        status, _, _ = refused(client, adapter_id=name, base_model="minilm", inputs=["a"])
        assert status in {400, 404}, name
    for name in (7, True, [], {"a": 1}, "nul\0", ""):
        status, _, param = refused(client, inputs=[{"adapter_id": name, "input": "a"}])
        assert (status, param) == (400, "inputs.0.adapter_id"), name
    assert edge.twin.rows == []


def test_bases(client: httpx.Client, edge: Edge) -> None:
    edge.publish("one")
    assert refused(client, inputs=["a"]) == (400, "base_model_required", "base_model")
    assert refused(client, base_model="gpt-9", inputs=["a"]) == (
        404,
        "base_not_found",
        "base_model",
    )
    mismatch = refused(client, adapter_id="one", base_model="smollm2", inputs=["a"])
    assert mismatch == (400, "base_mismatch", "base_model")
    rows = [{"adapter_id": "one", "base_model": "smollm2", "input": "a"}]
    assert refused(client, inputs=rows) == (400, "base_mismatch", "inputs.0.base_model")
    assert edge.twin.rows == []


def test_limits(client: httpx.Client, edge: Edge) -> None:
    base = {"base_model": "minilm"}
    assert refused(client, **base, inputs=["a"] * 9) == (400, "too_many_rows", "inputs")
    assert refused(client, **base, inputs=["a" * 2001]) == (413, "too_large", "inputs")
    assert refused(client, **base, inputs=[]) == (400, "bad_input", "inputs")
    assert refused(client, **base) == (400, "bad_input", "inputs")
    assert refused(client, **base, inputs="a") == (400, "bad_input", "inputs")
    assert refused(client, **base, inputs=["a", LONG]) == (400, "too_long", "inputs.1")
    assert refused(client, **base, inputs=["ok", {"text": "\ud800"}])[::2] == (400, "inputs.1.text")
    assert refused(client, **base, inputs=["a"], options={"temperature": -1}) == (
        400,
        "bad_input",
        "options.temperature",
    )
    assert refused(client, **base, inputs=["a"], options={"heat": 1})[2] == "options.heat"
    for odd in ("NaN", "Infinity", "-Infinity", "1e999"):
        response = client.post(
            "/predict",
            content='{"base_model": "minilm", "inputs": [' + odd + "]}",
            headers={"content-type": "application/json"},
        )
        assert (response.status_code, error_of(response)["param"]) == (400, "inputs"), odd
    response = client.post("/predict", content=b'"' + b"a" * 300_000)
    assert response.status_code == 413
    deep = '{"base_model": "minilm", "inputs": [' + "[" * 500 + "]" * 500 + "]}"
    response = client.post("/predict", content=deep, headers={"content-type": "application/json"})
    assert response.status_code in {200, 400}


def test_a_busy_inference_process(client: httpx.Client, edge: Edge) -> None:
    edge.twin.is_busy = True
    response = client.post("/predict", json={"base_model": "minilm", "inputs": ["a"]})
    assert (response.status_code, error_of(response)["code"]) == (429, "queue_full")
    assert response.headers["retry-after"] == "3"


def test_many_calls_at_once_get_their_own_answers(client: httpx.Client, edge: Edge) -> None:
    made = {name: edge.publish(name).id for name in ("one", "two", "three")}

    def call(place: int) -> None:
        name = list(made)[place % 3]
        answer = ask(client, adapter_id=name, inputs=[f"{place}", f"{place} again"])
        assert [output["label"] for output in answer["outputs"]] == [f"{place}", f"{place} again"]
        assert {output["by"] for output in answer["outputs"]} == {made[name]}

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(call, range(64)))


def test_adapters_of_another_tenant_are_not_there(
    client: httpx.Client, other: httpx.Client, edge: Edge
) -> None:
    mine = edge.publish("intents")
    for reference in (mine.id, "intents", "intents@1"):
        assert refused(other, adapter_id=reference, inputs=["a"])[:2] == (404, "adapter_not_found")
        assert other.get(f"/adapters/{reference}").status_code == 404
        assert other.get(f"/adapters/{reference}/export").status_code == 404
        assert other.delete(f"/adapters/{reference}").status_code == 404
    theirs = edge.publish("intents", key=edge.other_key)
    assert ask(other, adapter_id="intents", inputs=["a"])["receipt"]["adapter_id"] == theirs.id
    assert ask(client, adapter_id="intents", inputs=["a"])["receipt"]["adapter_id"] == mine.id
    assert [row["id"] for row in other.get("/adapters").json()["data"]] == [theirs.id]


def test_adapters(client: httpx.Client, edge: Edge) -> None:
    first, second = edge.publish("intents"), edge.publish("intents")
    shown = client.get("/adapters/intents").json()
    assert (shown["id"], shown["reference"]) == (second.id, "intents@2")
    assert client.get("/adapters/intents@1").json()["id"] == first.id
    assert shown["methods"] == [{"type": "lora", "r": 16}]
    assert "key" not in shown

    export = client.get(f"/adapters/{first.id}/export")
    assert export.content == b"delta of intents"
    assert export.headers["etag"] == f'"{first.digest}"'
    assert export.headers["content-disposition"] == 'attachment; filename="intents-1.safetensors"'
    other_format = client.get(f"/adapters/{first.id}/export?format=gguf")
    assert error_of(other_format)["code"] == "export_not_possible"  # the twin has no model
    assert client.get(f"/adapters/{first.id}/export?format=zip").status_code == 400

    assert client.delete("/adapters/intents").json()["id"] == second.id
    assert client.get("/adapters/intents").json()["id"] == first.id
    assert refused(client, adapter_id=second.id, inputs=["a"])[:2] == (404, "adapter_not_found")
    # both versions have the same bytes: one object, which the first still needs
    assert client.get(f"/adapters/{first.id}/export").status_code == 200
    assert edge.publish("intents").version == 3


def test_an_adapter_whose_bytes_are_gone(client: httpx.Client, edge: Edge) -> None:
    adapter = edge.publish("intents")
    from core.storage import open_store

    open_store(edge.settings).delete(adapter.key)
    response = client.get(f"/adapters/{adapter.id}/export")
    assert (response.status_code, error_of(response)["code"]) == (404, "object_not_found")


def test_models(client: httpx.Client) -> None:
    models = {model["id"]: model for model in client.get("/models").json()["data"]}
    assert models["minilm"]["architecture"] == "encoder"
    assert models["minilm"]["tasks"] == ["text-classification"]
    assert models["smollm2"]["tasks"] is None
    assert models["minilm"]["ready"] is True
    assert models["smollm2"]["ready"] is False
    assert client.get("/models/minilm").json() == models["minilm"]
    response = client.get("/models/who%2Fknows")
    assert (response.status_code, error_of(response)["code"]) == (404, "base_not_found")


def test_a_key_must_have_the_scope(edge: Edge) -> None:
    edge.publish("intents")
    reader = edge.client(edge.new_key("read"))
    assert reader.get("/adapters").status_code == 200
    response = reader.post("/predict", json={"adapter_id": "intents", "inputs": ["a"]})
    assert (response.status_code, error_of(response)["code"]) == (403, "missing_scope")
    predictor = edge.client(edge.new_key("predict"))
    assert ask(predictor, adapter_id="intents", inputs=["a"])["outputs"]
    assert predictor.get("/adapters").status_code == 403


@pytest.mark.usefixtures("client")
def test_an_adapter_with_requests_in_flight_is_not_deleted(
    client: httpx.Client, edge: Edge
) -> None:
    adapter = edge.publish("intents")
    edge.twin.in_flight[adapter.id] = 2
    refused = client.delete("/adapters/intents")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "adapter_in_use")
    assert "2 requests" in refused.json()["error"]["message"]
    edge.twin.in_flight.clear()
    assert client.delete("/adapters/intents").status_code == 200


def test_a_deleted_adapter_is_not_remembered(client: httpx.Client, edge: Edge) -> None:
    adapter = edge.publish("intents")
    for reference in (adapter.id, "intents@1"):
        body = {"adapter_id": reference, "inputs": ["where is my card"]}
        for _ in range(2):  # the second is planned from memory
            client.post("/predict", json=body).raise_for_status()
    client.delete("/adapters/intents").raise_for_status()
    for reference in (adapter.id, "intents@1"):
        body = {"adapter_id": reference, "inputs": ["where is my card"]}
        gone = client.post("/predict", json=body)
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "adapter_not_found")


def test_a_deleted_adapter_leaves_others_alone(edge: Edge) -> None:
    mine = edge.publish("one")
    edge.client(edge.key).delete(f"/adapters/{mine.id}").raise_for_status()
    with edge.database.read() as session:
        owner = tenants.authenticate(session, edge.key)
        assert owner is not None
        assert adapters.list_page(session, owner.tenant_id).items == []
