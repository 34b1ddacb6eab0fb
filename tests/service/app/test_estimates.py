"""``/jobs:estimate`` and ``/estimates`` over HTTP, on both databases and a real broker."""

import threading
from typing import Any

import httpx
import pytest
import redis

from core.db import estimates
from core.states import EstimateStatus
from tests.service.app.conftest import Edge
from tests.service.app.job_steps import create, spec, waiting
from tests.service.app.rows import error_of

RESULT: dict[str, Any] = {
    "fits": True,
    "suggestion": None,
    "trials": [
        {
            "batch_size": 16,
            "gradient_accumulation": 1,
            "gradient_checkpointing": False,
            "max_length": 256,
            "fits": True,
            "peak_bytes": 1000,
        }
    ],
    "resolved": {"batch_size": 16},
    "why": {"packing": "it is off"},
    "memory": {"peak_bytes": 1000, "measure": "resident_growth", "base_bytes": 10},
    "seconds": {
        name: {"likely": 2.0, "low": 1.0, "high": 3.0}
        for name in ("total", "preparing", "steps", "validations", "reports", "writing")
    },
    "tokens": 100,
    "tokens_per_second": 50.0,
    "total_steps": 10,
    "validations": 3,
    "trainable_parameters": 7,
    "head_parameters": 2,
    "base_parameters": 700,
    "adapter_bytes": 28,
    "rows": {"train": 32},
    "rows_read": {"train": 32},
    "notes": [],
    "measured_seconds": 4.0,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def broker(edge: Edge) -> redis.Redis:
    assert edge.settings.broker_url is not None
    broker = redis.Redis.from_url(edge.settings.broker_url)
    broker.flushdb()
    return broker


def ask(client: httpx.Client, dataset_id: str, wait: float = 0, **more: Any) -> httpx.Response:
    return client.post("/jobs:estimate", params={"wait": wait}, json=spec(dataset_id, **more))


def claim(edge: Edge, estimate_id: str) -> int:
    with edge.database.write() as session:
        found = estimates.claim(session, estimate_id, owner="test", lease_seconds=60)
    assert found is not None
    return found.attempt


def conclude(edge: Edge, estimate_id: str, result: dict[str, Any]) -> None:
    attempt = claim(edge, estimate_id)
    with edge.database.write() as session:
        assert estimates.finish(
            session, estimate_id, attempt, EstimateStatus.SUCCEEDED, result=result
        )


def test_it_is_kept_and_sent(client: httpx.Client, dataset_id: str, broker: redis.Redis) -> None:
    response = ask(client, dataset_id)
    shown = response.json()
    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"/estimates/{shown['id']}"
    assert (shown["status"], shown["queue_position"], shown["result"]) == ("queued", 0, None)
    assert shown["reason"] == "waits for a worker between jobs"
    assert shown["spec"]["task"] == "text-classification"
    assert client.get(f"/estimates/{shown['id']}").json() == shown
    assert waiting(broker) == 1
    assert client.get("/jobs").json()["data"] == []


def test_who_waits_gets_the_result(client: httpx.Client, edge: Edge, dataset_id: str) -> None:
    answers: list[httpx.Response] = []
    waits = threading.Thread(target=lambda: answers.append(ask(client, dataset_id, wait=30)))
    waits.start()
    other = edge.client(edge.key)
    found: list[dict[str, Any]] = []
    pause = threading.Event()
    while not found:
        found = other.get("/estimates").json()["data"]
        pause.wait(0.05)
    conclude(edge, found[0]["id"], RESULT)
    waits.join(30)
    (answer,) = answers
    assert answer.status_code == 200
    assert answer.json()["status"] == "succeeded"
    assert answer.json()["result"] == RESULT


def test_jobs_that_cannot_be_made_or_measured_are_refused(
    client: httpx.Client, dataset_id: str, broker: redis.Redis
) -> None:
    cases: list[tuple[dict[str, Any], int, str, str | None]] = [
        ({"base_model": "nobody"}, 404, "base_not_found", "base_model"),
        ({"task": "regression"}, 400, "task_mismatch", "task"),
        ({"training": {"epochs": -1}}, 400, "bad_input", "training.epochs"),
        ({"training": {"devices": 2}}, 400, "estimate_unavailable", "training.devices"),
        (
            {"base": {"pruning": {"method": "wanda", "sparsity": 0.5}}},
            400,
            "estimate_unavailable",
            "base.pruning",
        ),
        ({"parent_adapter_id": "nobody"}, 404, "adapter_not_found", "parent_adapter_id"),
    ]
    for more, status, code, param in cases:
        response = ask(client, dataset_id, **more)
        error = error_of(response)
        assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    gone = ask(client, "ds_00000000000000000000000000")
    assert (gone.status_code, error_of(gone)["code"]) == (404, "dataset_not_found")
    assert client.post("/jobs:estimate?wait=31", json=spec(dataset_id)).status_code == 400
    assert waiting(broker) == 0


def test_another_tenant_sees_nothing(
    client: httpx.Client, other: httpx.Client, edge: Edge, dataset_id: str
) -> None:
    name = ask(client, dataset_id).json()["id"]
    for response in (other.get(f"/estimates/{name}"), other.post(f"/estimates/{name}:cancel")):
        assert (response.status_code, error_of(response)["code"]) == (404, "estimate_not_found")
    assert other.get("/estimates").json()["data"] == []
    reader = edge.client(edge.new_key("read"))
    assert ask(reader, dataset_id).status_code == 403
    assert reader.get(f"/estimates/{name}").status_code == 200


def test_it_is_cancelled(client: httpx.Client, edge: Edge, dataset_id: str) -> None:
    queued, running = (ask(client, dataset_id).json()["id"] for _ in range(2))
    claim(edge, running)
    assert client.post(f"/estimates/{queued}:cancel").json()["status"] == "cancelled"
    assert client.post(f"/estimates/{running}:cancel").json()["status"] == "running"
    ended = ask(client, dataset_id).json()["id"]
    conclude(edge, ended, RESULT)
    refused = client.post(f"/estimates/{ended}:cancel")
    assert (refused.status_code, error_of(refused)["code"]) == (409, "estimate_finished")


def test_they_are_listed_newest_first(client: httpx.Client, edge: Edge, dataset_id: str) -> None:
    made = [ask(client, dataset_id, training={"seed": seed}).json()["id"] for seed in range(3)]
    conclude(edge, made[1], RESULT)
    page = client.get("/estimates", params={"limit": 2}).json()
    assert [row["id"] for row in page["data"]] == made[:0:-1]
    rest = client.get("/estimates", params={"after": page["last_id"]}).json()
    assert [row["id"] for row in rest["data"]] == made[:1]
    over = client.get("/estimates", params={"status": "succeeded"}).json()["data"]
    assert [(row["id"], row["result"]["fits"]) for row in over] == [(made[1], True)]


def test_too_many_are_refused_for_a_while(client: httpx.Client, dataset_id: str) -> None:
    for _ in range(estimates.MOST_WAITING):
        assert ask(client, dataset_id).status_code == 202
    refused = ask(client, dataset_id)
    assert (refused.status_code, error_of(refused)["code"]) == (429, "too_many_estimates")
    assert int(refused.headers["retry-after"]) > 0


def test_a_held_job_shows_its_estimate_until_it_is_started(
    client: httpx.Client, edge: Edge, dataset_id: str, broker: redis.Redis
) -> None:
    job = create(client, dataset_id, auto_start=False)
    assert job["estimate"]["status"] == "queued"
    assert waiting(broker) == 1
    conclude(edge, job["estimate"]["id"], RESULT)
    shown = client.get(f"/jobs/{job['id']}").json()["estimate"]
    assert (shown["status"], shown["result"]) == ("succeeded", RESULT)
    (listed,) = client.get("/jobs").json()["data"]
    assert listed["estimate"] == shown
    started = client.post(f"/jobs/{job['id']}:start").json()
    assert (started["status"], started["estimate"]) == ("queued", shown)
    plain = create(client, dataset_id, training={"seed": 1})
    assert plain["estimate"] is None


@pytest.mark.parametrize("act", ["start", "cancel"])
def test_a_job_that_no_longer_waits_needs_no_estimate(
    client: httpx.Client, dataset_id: str, act: str
) -> None:
    job = create(client, dataset_id, auto_start=False)
    after = client.post(f"/jobs/{job['id']}:{act}").json()["estimate"]
    assert after["status"] == "cancelled"
    assert after["reason"].startswith("its job was ")


def test_a_job_sent_twice_has_one_estimate(
    client: httpx.Client, dataset_id: str, broker: redis.Redis
) -> None:
    first, second = (create(client, dataset_id, auto_start=False) for _ in range(2))
    assert first == second
    assert waiting(broker) == 1
