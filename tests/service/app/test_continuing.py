"""Jobs that continue from an adapter, over HTTP: what is meant, what is refused, what is shown."""

from typing import Any

import httpx
import pytest

from core.db import adapters, jobs, nodes
from core.db.models import Adapter
from core.states import JobStatus
from tests.service.app.conftest import Edge
from tests.service.app.rows import error_of


@pytest.fixture
def parent(edge: Edge) -> Adapter:
    return edge.publish("intents")


def post(client: httpx.Client, dataset_id: str, **more: Any) -> httpx.Response:
    return client.post("/jobs", json={"dataset_id": dataset_id, "base_model": "minilm"} | more)


@pytest.mark.parametrize("form", ["{id}", "{name}", "{name}@1"])
def test_any_reference_becomes_the_id(
    client: httpx.Client, dataset_id: str, parent: Adapter, form: str
) -> None:
    reference = form.format(id=parent.id, name=parent.name)
    made = post(client, dataset_id, parent_adapter_id=reference)
    assert made.status_code == 202, made.text
    shown = made.json()["spec"]
    assert shown["parent_adapter_id"] == parent.id
    assert (shown["method"][0]["type"], shown["method"][0]["r"]) == ("lora", 16)


def test_a_job_without_a_method_takes_the_parents(
    client: httpx.Client, edge: Edge, dataset_id: str
) -> None:
    methods = [{"type": "bitfit"}, {"type": "lora", "r": 3}]
    parent = edge.publish("mixed", methods=methods)
    spec = post(client, dataset_id, parent_adapter_id=parent.id).json()["spec"]
    assert [method["type"] for method in spec["method"]] == ["bitfit", "lora"]
    assert spec["method"][1]["r"] == 3


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"parent_adapter_id": "nobody"}, 404, "adapter_not_found", "parent_adapter_id"),
        ({"parent_adapter_id": "intents@9"}, 404, "adapter_not_found", "parent_adapter_id"),
        ({"parent_adapter_id": "in tents"}, 400, "bad_input", "parent_adapter_id"),
        ({"method": "bitfit"}, 400, "parent_mismatch", "method"),
        ({"method": {"r": 8}}, 400, "parent_mismatch", "method.0.r"),
        ({"base_model": "smollm2"}, 400, "base_mismatch", "base_model"),
        ({"task": "regression"}, 400, "task_mismatch", "task"),
    ],
)
def test_what_the_parent_is_not_is_refused(
    client: httpx.Client,
    dataset_id: str,
    parent: Adapter,
    change: dict[str, Any],
    status: int,
    code: str,
    param: str,
) -> None:
    refused = post(client, dataset_id, **({"parent_adapter_id": parent.id} | change))
    error = error_of(refused)
    assert (refused.status_code, error["code"], error["param"]) == (status, code, param), error
    assert client.get("/jobs").json()["data"] == []


def test_a_data_set_of_another_task_is_refused(client: httpx.Client, parent: Adapter) -> None:
    rows = [{"text": f"row {place}", "value": place / 7} for place in range(30)]
    made = client.post("/datasets", json={"records": rows, "task": "regression"}).json()
    refused = post(client, made["id"], parent_adapter_id=parent.id)
    assert (refused.status_code, error_of(refused)["code"]) == (400, "task_mismatch")


def test_another_name_of_the_same_weights_will_do(
    client: httpx.Client, edge: Edge, dataset_id: str
) -> None:
    parent = edge.publish("elsewhere", base_model="minilm-of-old")
    assert post(client, dataset_id, parent_adapter_id=parent.id).status_code == 400
    with edge.database.write() as session:
        nodes.announce(
            session,
            id="node_1",
            url="http://127.0.0.1:1",
            bases=[{"name": "minilm", "fingerprint": parent.base_fingerprint}],
            device="cpu",
            precision={},
            status="ready",
        )
    assert post(client, dataset_id, parent_adapter_id=parent.id).status_code == 202


def test_the_parent_of_another_tenant_is_not_there(
    client: httpx.Client, edge: Edge, dataset_id: str
) -> None:
    theirs = edge.publish("theirs", key=edge.other_key)
    assert post(client, dataset_id, parent_adapter_id=theirs.id).status_code == 404


def test_a_name_that_means_a_newer_version_is_another_wish(
    client: httpx.Client, edge: Edge, dataset_id: str, parent: Adapter
) -> None:
    def ask(**headers: str) -> str:
        body = {"dataset_id": dataset_id, "base_model": "minilm", "parent_adapter_id": "intents"}
        made = client.post("/jobs", json=body, headers=headers)
        assert made.status_code == 202, made.text
        return str(made.json()["id"])

    keyed, unkeyed = ask(**{"idempotency-key": "once"}), ask()
    assert ask() == unkeyed
    edge.publish("intents", salt="newer")
    assert ask() != unkeyed
    assert ask(**{"idempotency-key": "once"}) == keyed


def test_a_parent_stays_while_a_job_needs_it_and_is_named_after_it_is_gone(
    client: httpx.Client, edge: Edge, dataset_id: str, parent: Adapter
) -> None:
    job = post(client, dataset_id, parent_adapter_id=parent.id).json()
    held = client.delete(f"/adapters/{parent.id}")
    assert (held.status_code, error_of(held)["code"]) == (409, "adapter_in_use")
    child = edge.publish("child", parent_adapter_id=parent.id)
    shown = client.get(f"/adapters/{child.id}/lineage").json()["ancestors"]
    assert [(row["adapter_id"], row["deleted"]) for row in shown] == [(parent.id, False)]

    with edge.database.write() as session:
        claim = jobs.claim(session, job["id"], owner="test", lease_seconds=60)
        assert claim is not None
        jobs.finish(session, job["id"], claim.attempt, JobStatus.FAILED, error={"code": "x"})
    assert client.delete(f"/adapters/{parent.id}").status_code == 200
    shown = client.get(f"/adapters/{child.id}/lineage").json()["ancestors"]
    assert [(row["digest"], row["deleted"]) for row in shown] == [(parent.digest, True)]
    again = client.post(f"/jobs/{job['id']}:retry")
    assert (again.status_code, error_of(again)["code"]) == (404, "adapter_not_found")
    assert error_of(again)["param"] == "parent_adapter_id"
    with edge.database.read() as session:
        assert adapters.get_for_worker(session, parent.id) is None
