"""``/jobs`` over HTTP, on both databases and a real broker."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import redis

from core.db import datasets, jobs, tenants
from core.states import DatasetStatus, JobStatus
from tests.service.app.conftest import Edge
from tests.service.app.job_steps import announce, create, run_to, spec, waiting
from tests.service.app.rows import error_of, upload


@pytest.fixture(autouse=True)
def broker(edge: Edge) -> redis.Redis:
    assert edge.settings.broker_url is not None
    broker = redis.Redis.from_url(edge.settings.broker_url)
    broker.flushdb()
    return broker


def test_a_job_shows_every_value_and_is_sent(
    client: httpx.Client, dataset_id: str, broker: redis.Redis
) -> None:
    response = client.post("/jobs", json=spec(dataset_id))
    job = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/jobs/{job['id']}"
    assert (job["status"], job["task"], job["attempt"]) == ("queued", "text-classification", 0)
    assert job["spec"]["method"][0]["type"] == "lora"
    assert job["spec"]["training"]["seed"] == 0
    assert job["adapter_name"] == "row-minilm"
    assert client.get(f"/jobs/{job['id']}").json() == job
    assert waiting(broker) == 1


def test_the_queue_position(client: httpx.Client, dataset_id: str) -> None:
    made = [create(client, dataset_id, training={"seed": seed}) for seed in range(3)]
    shown = [client.get(f"/jobs/{job['id']}").json()["queue_position"] for job in made]
    assert shown == [0, 1, 2]
    client.post(f"/jobs/{made[0]['id']}:cancel").raise_for_status()
    listed = [job["queue_position"] for job in client.get("/jobs").json()["data"]]
    assert listed == [1, 0, None]


def test_a_repeated_post_is_one_job(
    client: httpx.Client, dataset_id: str, broker: redis.Redis
) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: create(client, dataset_id)["id"], range(8)))
    assert len(set(made)) == 1
    assert waiting(broker) == 1
    assert create(client, dataset_id, training={"seed": 1})["id"] != made[0]
    client.post(f"/jobs/{made[0]}:cancel")
    assert create(client, dataset_id)["id"] != made[0]


def test_an_idempotency_key(client: httpx.Client, dataset_id: str, broker: redis.Redis) -> None:
    def send(seed: int) -> httpx.Response:
        body = spec(dataset_id, training={"seed": seed})
        return client.post("/jobs", json=body, headers={"idempotency-key": "once"})

    with ThreadPoolExecutor(4) as pool:
        made = {response.json()["id"] for response in pool.map(lambda _: send(1), range(4))}
    assert len(made) == 1
    assert waiting(broker) == 1
    client.post(f"/jobs/{made.pop()}:cancel")
    assert send(1).json()["status"] == "cancelled"
    conflict = send(2)
    assert (conflict.status_code, error_of(conflict)["code"]) == (409, "idempotency_mismatch")
    assert conflict.headers["x-should-retry"] == "false"


def test_a_key_gives_the_same_answer_when_its_data_set_is_gone(
    client: httpx.Client, edge: Edge, dataset_id: str
) -> None:
    headers = {"idempotency-key": "once"}
    made = client.post("/jobs", json=spec(dataset_id), headers=headers).json()
    run_to(edge, made["id"], JobStatus.SUCCEEDED)
    client.delete(f"/datasets/{dataset_id}").raise_for_status()
    again = client.post("/jobs", json=spec(dataset_id), headers=headers)
    assert (again.status_code, again.json().get("id")) == (202, made["id"]), again.text
    other = client.post("/jobs", json=spec(dataset_id, task="regression"), headers=headers)
    assert (other.status_code, error_of(other)["code"]) == (409, "idempotency_mismatch")


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"dataset_id": "ds_none"}, 404, "dataset_not_found", "dataset_id"),
        ({"base_model": "gpt-9"}, 404, "base_not_found", "base_model"),
        ({"training": {"devices": 2}}, 400, "too_many_devices", "training.devices"),
        ({"task": "text-generation"}, 400, "task_mismatch", "task"),
        ({"task": "poetry"}, 400, "bad_input", "task"),
        ({"training": {"epochs": -1}}, 400, "bad_input", "training.epochs"),
        ({"training": {"epochs": 1e999}}, 400, "bad_input", "training.epochs"),
        ({"training": {"epochs": True}}, 400, "bad_input", "training.epochs"),
        ({"training": {"seed": "8"}}, 400, "bad_input", "training.seed"),
        ({"training": {"seed": "x"}}, 400, "bad_input", "training.seed"),
        ({"training": {"learning_rat": 1}}, 400, "bad_input", "training.learning_rat"),
        ({"method": "lorra"}, 400, "bad_input", "method"),
        ({"method": {"type": "lora", "r": 0}}, 400, "bad_input", "method.0.r"),
        ({"adapter_name": "No Spaces"}, 400, "bad_input", "adapter_name"),
        ({"metadata": {"a": "nul \0"}}, 400, "bad_input", "metadata.a"),
        ({"metadata": {"a": "half \ud800"}}, 400, "bad_input", None),
        ({"colour": 1}, 400, "bad_input", "colour"),
    ],
)
def test_a_wrong_job_is_refused_at_once(
    client: httpx.Client,
    dataset_id: str,
    broker: redis.Redis,
    change: dict[str, Any],
    status: int,
    code: str,
    param: str | None,
) -> None:
    response = client.post(
        "/jobs",
        content=json.dumps(spec(dataset_id) | change),
        headers={"content-type": "application/json"},
    )
    error = error_of(response)
    assert (response.status_code, error["code"]) == (status, code), error
    assert param is None or error["param"] == param
    assert client.get("/jobs").json()["data"] == []
    assert waiting(broker) == 0


def test_all_problems_of_a_job_are_told(client: httpx.Client, dataset_id: str) -> None:
    wrong = spec(dataset_id, training={"epochs": -1, "seed": "x"}, method={"r": 0}, colour=1)
    error = error_of(client.post("/jobs", json=wrong))
    found = {problem["param"] for problem in error["details"]}
    assert found == {"training.epochs", "training.seed", "method.0.r", "colour"}


def test_rows_in_two_splits_need_a_word(client: httpx.Client) -> None:
    rows = [{"text": f"row {place} of all", "label": "ab"[place % 2]} for place in range(30)]
    files = {
        "file": ("a.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows)),
        "test_file": ("b.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows[:10])),
    }
    made = client.post("/datasets", files=files).json()
    refused = client.post("/jobs", json=spec(made["id"]))
    assert (refused.status_code, error_of(refused)["code"]) == (400, "dataset_leakage")
    assert create(client, made["id"], allow_leakage=True)["status"] == "queued"


@pytest.mark.parametrize("architecture", ["encoder", "encoder-decoder"])
def test_a_base_that_cannot_do_the_task(
    client: httpx.Client, edge: Edge, architecture: str
) -> None:
    rows = [{"prompt": f"say {place}", "completion": f"{place}"} for place in range(30)]
    made = client.post("/datasets", json={"records": rows}).json()
    assert made["task"] == "text-generation"
    assert create(client, made["id"])["status"] == "queued"
    announce(
        edge,
        {"name": "minilm", "architecture": architecture},
        {"name": "smollm2", "architecture": None},
    )
    if architecture == "encoder-decoder":
        assert create(client, made["id"], training={"seed": 1})["status"] == "queued"
        return
    refused = client.post("/jobs", json=spec(made["id"], training={"seed": 1}))
    error = error_of(refused)
    assert (refused.status_code, error["code"], error["param"]) == (
        400,
        "task_not_supported",
        "base_model",
    )
    assert create(client, made["id"], base_model="smollm2")["status"] == "queued"


def test_every_task_that_the_engine_trains_is_taken(client: httpx.Client) -> None:
    rows = [{"text": f"row {place}", "value": place / 7} for place in range(30)]
    values = client.post("/datasets", json={"records": rows, "task": "regression"}).json()
    assert create(client, values["id"])["task"] == "regression"
    several = [
        {"text": f"row number {place}", "labels": [["a"], ["b"], ["a", "b"]][place % 3]}
        for place in range(60)
    ]
    made = client.post("/datasets", json={"records": several}).json()
    assert (made["status"], made["task"]) == ("ready", "text-classification")
    assert create(client, made["id"])["status"] == "queued"


def test_rows_longer_than_the_base_reads_are_refused_at_once(
    client: httpx.Client, edge: Edge, dataset_id: str
) -> None:
    announce(
        edge,
        {"name": "minilm", "architecture": "encoder", "max_length": 512},
        {"name": "smollm2", "architecture": None, "max_length": None},
    )
    refused = client.post("/jobs", json=spec(dataset_id, training={"max_length": 513}))
    error = error_of(refused)
    assert (refused.status_code, error["code"], error["param"]) == (
        400,
        "too_long",
        "training.max_length",
    )
    assert "512" in error["message"]
    for accepted in (512, "auto"):
        assert create(client, dataset_id, training={"max_length": accepted})["status"] == "queued"
    unknown = create(client, dataset_id, base_model="smollm2", training={"max_length": 8000})
    assert unknown["status"] == "queued"


def test_cancelling(client: httpx.Client, edge: Edge, dataset_id: str) -> None:
    job = create(client, dataset_id)
    first = client.post(f"/jobs/{job['id']}:cancel")
    assert (first.status_code, first.json()["status"]) == (202, "cancelled")
    again = client.post(f"/jobs/{job['id']}:cancel")
    assert (again.status_code, error_of(again)["code"]) == (409, "job_finished")

    running = create(client, dataset_id, training={"seed": 1})
    run_to(edge, running["id"], JobStatus.RUNNING)
    for _ in range(2):
        assert client.post(f"/jobs/{running['id']}:cancel").json()["status"] == "cancelling"


def test_pausing_and_resuming(
    client: httpx.Client, edge: Edge, dataset_id: str, broker: redis.Redis
) -> None:
    job = create(client, dataset_id)
    path = f"/jobs/{job['id']}"
    assert client.post(f"{path}:pause").json()["status"] == "paused"
    broker.flushdb()
    assert client.post(f"{path}:resume").json()["status"] == "queued"
    assert waiting(broker) == 1
    run_to(edge, job["id"], JobStatus.RUNNING)
    assert client.post(f"{path}:pause").json()["status"] == "pausing"


def test_a_job_is_checked_now_and_started_later(
    client: httpx.Client, edge: Edge, dataset_id: str, broker: redis.Redis
) -> None:
    wrong = spec(dataset_id, auto_start=False, base_model="gpt-9")
    assert error_of(client.post("/jobs", json=wrong))["code"] == "base_not_found"
    job = create(client, dataset_id, auto_start=False)
    path = f"/jobs/{job['id']}"
    assert (job["status"], job["reason"]) == ("paused", "waits for POST /jobs/{id}:start")
    assert (job["spec"]["auto_start"], job["task"]) == (False, "text-classification")
    assert waiting(broker) == 1
    broker.flushdb()  # that was its estimate
    (listed,) = client.get("/jobs", params={"status": "paused"}).json()["data"]
    assert (listed["id"], listed["reason"]) == (job["id"], job["reason"])
    for _ in range(2):
        started = client.post(f"{path}:start")
        assert (started.status_code, started.json()["status"]) == (202, "queued")
        assert (started.json()["reason"], waiting(broker) > 0) == (None, True)
    other = create(client, dataset_id, auto_start=False, training={"seed": 1})
    gone = client.post(f"/jobs/{other['id']}:cancel").json()
    assert (gone["status"], gone["reason"]) == ("cancelled", None)
    refused = client.post(f"/jobs/{other['id']}:start")
    assert (refused.status_code, error_of(refused)["code"]) == (409, "job_finished")


@pytest.mark.parametrize("wish", ["start", "resume"])
def test_a_job_is_checked_again_when_it_is_started(
    client: httpx.Client, edge: Edge, broker: redis.Redis, wish: str
) -> None:
    rows = [{"prompt": f"say {place}", "completion": f"{place}"} for place in range(30)]
    made = client.post("/datasets", json={"records": rows}).json()
    path = f"/jobs/{create(client, made['id'], auto_start=False)['id']}"
    broker.flushdb()  # its estimate
    announce(edge, {"name": "minilm", "architecture": "encoder"})
    refused = client.post(f"{path}:{wish}")
    assert (refused.status_code, error_of(refused)["param"]) == (400, "base_model")
    assert client.get(path).json()["status"] == "paused"
    announce(edge, {"name": "minilm", "architecture": "causal"})
    assert client.post(f"{path}:{wish}").json()["status"] == "queued"
    assert waiting(broker) == 1


def test_retrying(client: httpx.Client, edge: Edge, dataset_id: str, broker: redis.Redis) -> None:
    job = create(client, dataset_id)
    path = f"/jobs/{job['id']}"
    early = client.post(f"{path}:retry")
    assert (early.status_code, error_of(early)["code"]) == (409, "invalid_transition")
    error = {"code": "out_of_memory", "message": "too large", "param": None}
    run_to(edge, job["id"], JobStatus.FAILED, error=error)
    assert client.get(path).json()["error"] == error
    broker.flushdb()
    again = client.post(f"{path}:retry").json()
    assert (again["status"], again["error"]) == ("queued", None)
    assert waiting(broker) == 1


@pytest.mark.parametrize(
    ("status", "found", "code"),
    [
        (DatasetStatus.READY, {"leakage": {"blocks": True, "exact_rows": 3}}, "dataset_leakage"),
        (DatasetStatus.INVALID, {}, "dataset_not_ready"),
    ],
)
def test_a_job_whose_data_set_turned_out_bad_is_not_retried(
    client: httpx.Client, edge: Edge, status: DatasetStatus, found: dict[str, Any], code: str
) -> None:
    with edge.database.write() as session:
        owner = tenants.authenticate(session, edge.key)
        assert owner is not None
        row = datasets.create(
            session, tenant_id=owner.tenant_id, name="rows", status=DatasetStatus.VALIDATING
        )
    job = create(client, row.id)
    with edge.database.write() as session:
        datasets.finish_validation(session, row.id, status=status, report=found)
        bad = {"code": "dataset_invalid", "message": "no rows", "param": "dataset_id"}
        error = bad if status is DatasetStatus.INVALID else None
        jobs.release_waiting(session, row.id, error=error)
    path = f"/jobs/{job['id']}"
    assert client.get(path).json()["status"] == "failed"
    assert error_of(client.post(f"{path}:retry"))["code"] == code
    assert client.get(path).json()["status"] == "failed"


def test_a_job_is_run_once_more(client: httpx.Client, edge: Edge, broker: redis.Redis) -> None:
    made = upload(client)
    job = create(client, made["id"], adapter_name="n" * 64, metadata={"team": "care"})
    path = f"/jobs/{job['id']}"
    early = client.post(f"{path}:reproduce")
    assert (early.status_code, error_of(early)["code"]) == (409, "invalid_transition")
    bare = client.get(f"{path}/manifest").json()
    assert bare["spec"] == job["spec"]
    assert (bare["adapter"], bare["environment"], bare["reproduces"]) == (None, None, None)

    first = edge.publish("first", job_id=job["id"])
    ended = {
        "adapter_id": first.id,
        "environment": {"torch": "2"},
        "resolved": {"learning_rate": 0.01},
    }
    run_to(edge, job["id"], JobStatus.SUCCEEDED, **ended)
    manifest = client.get(f"{path}/manifest").json()
    assert manifest["base"]["fingerprint"] == first.base_fingerprint
    assert (manifest["adapter"]["digest"], manifest["environment"]) == (
        first.digest,
        {"torch": "2"},
    )
    splits = {split: own["rows"] for split, own in manifest["dataset"]["splits"].items()}
    assert (splits, manifest["dataset"]["sha256"]) == (made["splits"], made["sha256"])

    announce(edge, {"name": "minilm", "fingerprint": "sha256:other"})
    other = client.post(f"{path}:reproduce")
    assert (other.status_code, error_of(other)["code"]) == (400, "base_mismatch")
    announce(edge, {"name": "minilm", "fingerprint": first.base_fingerprint})
    broker.flushdb()
    answers = [client.post(f"{path}:reproduce") for _ in range(2)]
    twin = answers[0].json()
    assert [answer.json()["id"] for answer in answers] == [twin["id"]] * 2
    assert (answers[0].status_code, twin["status"], waiting(broker)) == (202, "queued", 1)
    assert answers[0].headers["location"] == f"/jobs/{twin['id']}"
    assert twin["reproduces_job_id"] == job["id"] != twin["id"]
    assert twin["adapter_name"] == "n" * 53 + "-reproduced"
    pinned = job["spec"]["training"] | {"learning_rate": 0.01}
    changed = {"adapter_name": twin["adapter_name"], "training": pinned}
    assert twin["spec"] == job["spec"] | changed
    again = f"/jobs/{twin['id']}/manifest"
    told = {"job_id": job["id"], "digest": first.digest}
    assert client.get(again).json()["reproduces"] == told | {"same": None}
    equal = edge.publish("first", job_id=twin["id"])
    run_to(edge, twin["id"], JobStatus.SUCCEEDED, adapter_id=equal.id)
    assert client.get(again).json()["reproduces"] == told | {"same": True}


def test_resolved_values_replace_auto(client: httpx.Client, edge: Edge, dataset_id: str) -> None:
    job = create(client, dataset_id)
    assert job["spec"]["training"]["learning_rate"] == job["spec"]["method"][0]["r"] == "auto"
    attempt = run_to(edge, job["id"], JobStatus.RUNNING)
    with edge.database.write() as session:
        jobs.update_fenced(
            session,
            job["id"],
            attempt,
            resolved={
                "method": [{"type": "lora", "r": 8, "alpha": 16}],
                "learning_rate": 0.001,
                "seed": 5,
                "total_steps": 9,
            },
        )
    shown = client.get(f"/jobs/{job['id']}").json()
    assert shown["spec"]["method"] == [{"type": "lora", "r": 8, "alpha": 16}]
    assert shown["spec"]["training"]["learning_rate"] == 0.001
    assert shown["spec"]["training"]["seed"] == 0
    assert shown["spec"]["training"]["batch_size"] == "auto"
    assert shown["resolved"]["total_steps"] == 9
    assert shown["status"] == "running"


def test_lists_have_filters_and_pages(client: httpx.Client, dataset_id: str) -> None:
    made = [
        create(client, dataset_id, training={"seed": seed}, metadata={"team": "ab"[seed % 2]})["id"]
        for seed in range(4)
    ]
    client.post(f"/jobs/{made[3]}:cancel")

    def listed(**params: str) -> list[str]:
        return [row["id"] for row in client.get("/jobs", params=params).json()["data"]]

    assert listed() == made[::-1]
    assert listed(status="cancelled") == [made[3]]
    assert listed(dataset_id="ds_other") == []
    assert listed(base_model="smollm2") == []
    assert listed(**{"metadata[team]": "a"}) == [made[2], made[0]]
    assert listed(**{"metadata[team]": "a' OR 1=1 --"}) == []
    assert listed(limit="1", after=made[2]) == [made[1]]
    assert client.get("/jobs", params={"status": "sleeping"}).status_code == 400
    assert client.get("/jobs", params={"metadata[x]": "\0"}).status_code == 400


@pytest.mark.parametrize("name", ["team", 'a"b', "a\\b", "a.b", "$", "é", "0", "a'b"])
def test_any_label_can_be_found(client: httpx.Client, dataset_id: str, name: str) -> None:
    made = create(client, dataset_id, metadata={name: "x", "other": "y"})
    create(client, dataset_id, metadata={"other": "x", name: "y"})
    found = client.get("/jobs", params={f"metadata[{name}]": "x"}).json()["data"]
    assert [job["id"] for job in found] == [made["id"]]


def test_another_tenant_sees_nothing(
    client: httpx.Client, other: httpx.Client, dataset_id: str
) -> None:
    job = create(client, dataset_id)
    path = f"/jobs/{job['id']}"
    for tail in ("", "/events", "/metrics", "/checkpoints"):
        response = other.get(path + tail)
        assert (response.status_code, error_of(response)["code"]) == (404, "job_not_found")
    for verb in ("cancel", "pause", "resume", "retry"):
        response = other.post(f"{path}:{verb}")
        assert (response.status_code, error_of(response)["code"]) == (404, "job_not_found")
    assert other.get("/jobs").json()["data"] == []
    assert client.get(path).json()["status"] == "queued"
