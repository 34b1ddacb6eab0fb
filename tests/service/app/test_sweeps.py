"""``/sweeps`` over HTTP, on both databases: what is refused, what is shown, whose it is."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import redis

from core.db import adapters, jobs, tenants
from core.queue import HOUSEKEEPING, JobQueue
from core.states import JobStatus
from tests.service.app.conftest import Edge
from tests.service.app.job_steps import create as create_job
from tests.service.app.job_steps import run_to
from tests.service.app.rows import error_of, jsonl, records, upload
from worker.sweeps.advancing import advance

GRID = {"method.r": [4, 8], "training.seed": [0, 1]}


@pytest.fixture(autouse=True)
def broker(edge: Edge) -> redis.Redis:
    assert edge.settings.broker_url is not None
    broker = redis.Redis.from_url(edge.settings.broker_url)
    broker.flushdb()
    return broker


def body(dataset_id: str, search: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    job = {"dataset_id": dataset_id, "base_model": "minilm", **more.pop("job", {})}
    return {"job": job, "search": GRID if search is None else search, **more}


def create(client: httpx.Client, dataset_id: str, **more: Any) -> dict[str, Any]:
    response = client.post("/sweeps", json=body(dataset_id, **more))
    assert response.status_code == 202, response.text
    sweep: dict[str, Any] = response.json()
    return sweep


def go_on(edge: Edge, sweep_id: str) -> None:
    """Do what a housekeeping worker does."""
    queue = JobQueue(edge.settings)
    advance(edge.database, queue, sweep_id, max_attempts=3)
    queue.close()


def test_a_sweep_is_made_shown_and_listed(
    client: httpx.Client, edge: Edge, dataset_id: str, broker: redis.Redis
) -> None:
    response = client.post("/sweeps", json=body(dataset_id, max_parallel=3))
    sweep = response.json()
    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"/sweeps/{sweep['id']}"
    assert broker.llen(HOUSEKEEPING) == 1
    assert (sweep["status"], sweep["max_jobs"], sweep["counts"]) == ("running", 4, {})
    assert sweep["search"]["method.r"] == {"values": [4, 8]}
    assert sweep["job"]["adapter_name"] == sweep["name"] == "row-minilm"
    assert client.get(f"/sweeps/{sweep['id']}").json() == sweep
    (listed,) = client.get("/sweeps").json()["data"]
    assert listed == {**sweep, "trials": None}

    go_on(edge, sweep["id"])
    shown = client.get(f"/sweeps/{sweep['id']}").json()
    assert shown["counts"] == {"queued": 3}
    assert [trial["params"] for trial in shown["trials"]] == [
        {"method.r": 4, "training.seed": 0},
        {"method.r": 4, "training.seed": 1},
        {"method.r": 8, "training.seed": 0},
    ]
    create_job(client, dataset_id)
    jobs = client.get("/jobs", params={"sweep": sweep["id"]}).json()["data"]
    assert [job["id"] for job in jobs] == [own["job_id"] for own in reversed(shown["trials"])]
    assert {job["sweep_id"] for job in jobs} == {sweep["id"]}
    assert {job["adapter_name"] for job in jobs} == {"row-minilm-trials"}
    assert {job["spec"]["evaluate_test"] for job in jobs} == {False}
    # a job that was asked for by itself stands before them, though it came later
    assert [job["queue_position"] for job in jobs] == [3, 2, 1]


def test_a_sweep_to_its_end(client: httpx.Client, edge: Edge, dataset_id: str) -> None:
    sweep_id = create(client, dataset_id)["id"]
    go_on(edge, sweep_id)
    trials = client.get(f"/sweeps/{sweep_id}").json()["trials"]
    for trial, value in zip(trials, (0.5, 0.8, 0.7, 0.6), strict=True):
        report = {"metric": "accuracy", "after": {"accuracy": value}, "best_step": 7}
        run_to(
            edge,
            trial["job_id"],
            JobStatus.SUCCEEDED,
            metrics={"validation": report},
            adapter_id=_publish(edge, trial["job_id"], "row-minilm-trials", digest="one"),
        )
    shown = client.get(f"/sweeps/{sweep_id}").json()
    assert (shown["metric"], shown["best"]["number"], shown["best"]["value"]) == (
        "accuracy",
        1,
        0.8,
    )
    assert shown["comparison"] is None
    assert shown["trials"][1]["best_step"] == 7
    assert shown["trials"][1]["seconds"] >= 0
    go_on(edge, sweep_id)
    shown = client.get(f"/sweeps/{sweep_id}").json()
    assert (shown["status"], shown["test"]["status"]) == ("testing", "queued")
    assert shown["comparison"]["best"] == 1
    test_job = shown["test"]["job_id"]
    metrics = {"test": {"after": {"accuracy": 0.7}, "details": {"much": "more"}}}
    made = _publish(edge, test_job, "row-minilm", digest="one")
    run_to(edge, test_job, JobStatus.SUCCEEDED, metrics=metrics, adapter_id=made)
    go_on(edge, sweep_id)
    shown = client.get(f"/sweeps/{sweep_id}").json()
    assert shown["status"] == "succeeded"
    assert shown["test"] == {
        "job_id": test_job,
        "status": "succeeded",
        "adapter_id": made,
        "metrics": {"after": {"accuracy": 0.7}},
        "same_digest": True,
    }
    (listed,) = client.get("/sweeps").json()["data"]
    assert listed == {**shown, "trials": None}
    late = client.post(f"/sweeps/{sweep_id}:cancel")
    assert (late.status_code, error_of(late)["code"]) == (409, "sweep_finished")


def _publish(edge: Edge, job_id: str, name: str, *, digest: str) -> str:
    with edge.database.write() as session:
        owner = tenants.authenticate(session, edge.key)
        assert owner is not None
        return adapters.publish(
            session,
            tenant_id=owner.tenant_id,
            name=name,
            job_id=job_id,
            base_model="minilm",
            base_fingerprint="sha256:f",
            task="text-classification",
            methods=[{"type": "lora"}],
            parameters=1,
            bytes=1,
            digest=f"sha256:{digest}",
            key=f"deltas/{digest}.safetensors",
        ).id


def test_a_repeated_post_is_one_sweep(client: httpx.Client, dataset_id: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: create(client, dataset_id)["id"], range(4)))
    assert len(set(made)) == 1
    headers = {"idempotency-key": "once"}
    first = client.post("/sweeps", json=body(dataset_id), headers=headers).json()
    assert first["id"] not in made
    again = client.post("/sweeps", json=body(dataset_id), headers=headers).json()
    assert again["id"] == first["id"]
    other = client.post("/sweeps", json=body(dataset_id, seed=1), headers=headers)
    assert (other.status_code, error_of(other)["code"]) == (409, "idempotency_mismatch")


def test_cancelling_ends_the_jobs(client: httpx.Client, edge: Edge, dataset_id: str) -> None:
    sweep_id = create(client, dataset_id)["id"]
    go_on(edge, sweep_id)
    response = client.post(f"/sweeps/{sweep_id}:cancel")
    assert (response.status_code, response.json()["status"]) == (202, "cancelling")
    assert response.json()["counts"] == {"cancelled": 4}
    go_on(edge, sweep_id)
    assert client.get(f"/sweeps/{sweep_id}").json()["status"] == "cancelled"


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        (
            {"search": {"training.learning_rat": [1]}},
            400,
            "bad_input",
            "search.training.learning_rat",
        ),
        ({"search": {"method.r": [0]}}, 400, "bad_input", "search.method.r"),
        ({"search": {"dataset_id": ["ds_2"]}}, 400, "bad_input", "search.dataset_id"),
        ({"search": {"method.r": {"min": 4}}}, 400, "bad_input", "search.method.r"),
        ({"search": {"base_model": ["minilm", "gpt-9"]}}, 404, "base_not_found", "job.base_model"),
        ({"search": {"training.devices": [1, 2]}}, 400, "too_many_devices", "job.training.devices"),
        ({"search": {"a b": [1]}}, 400, "bad_input", None),
        ({"search": {}}, 400, "bad_input", "search"),
        ({"job": {"dataset_id": "ds_none"}}, 404, "dataset_not_found", "job.dataset_id"),
        ({"job": {"task": "regression"}}, 400, "task_mismatch", "job.task"),
        ({"job": {"metadata": {"a": "nul \0"}}}, 400, "bad_input", "job.metadata.a"),
        ({"job": {"parent_adapter_id": "none"}}, 404, "adapter_not_found", "job.parent_adapter_id"),
        ({"strategy": "luck"}, 400, "bad_input", "strategy"),
        ({"max_jobs": 300}, 400, "bad_input", "max_jobs"),
        ({"max_jobs": 3}, 400, "bad_input", "search"),
        ({"metric": "beauty"}, 400, "bad_input", "metric"),
        ({"metric": "rmse"}, 400, "unknown_metric", "job.training.early_stopping.metric"),
        ({"search": {"method.r": [json.loads("[" * 300 + "]" * 300)]}}, 400, "bad_input", None),
        ({"job": {"x": json.loads("[" * 300 + "]" * 300)}}, 400, "bad_input", "job"),
        (
            {"search": {"training.class_weights": [{"\ud800": 2.0}]}},
            400,
            "bad_input",
            "search.training.class_weights.values.0",
        ),
    ],
)
def test_a_wrong_sweep_is_refused_at_once(
    client: httpx.Client,
    dataset_id: str,
    broker: redis.Redis,
    change: dict[str, Any],
    status: int,
    code: str,
    param: str | None,
) -> None:
    # as bytes: the client's own encoder has no halves of pairs
    response = client.post(
        "/sweeps",
        content=json.dumps(body(dataset_id, **change)),
        headers={"content-type": "application/json"},
    )
    error = error_of(response)
    assert (response.status_code, error["code"]) == (status, code), error
    if param is not None:
        assert error["param"] == param
    assert client.get("/sweeps").json()["data"] == []
    assert client.get("/jobs").json()["data"] == []
    assert broker.llen(HOUSEKEEPING) == 0


@pytest.mark.parametrize("name", ["a" * 64, "a" * 57 + "-trials", "letters-trials"])
def test_trials_never_have_the_name_of_the_tested_adapter(
    client: httpx.Client, edge: Edge, dataset_id: str, name: str
) -> None:
    sweep_id = create(client, dataset_id, job={"adapter_name": name})["id"]
    go_on(edge, sweep_id)
    jobs = client.get("/jobs", params={"sweep": sweep_id}).json()["data"]
    (made,) = {job["adapter_name"] for job in jobs}
    assert made != name
    assert made.endswith("-trials")


def test_all_problems_are_listed(client: httpx.Client, dataset_id: str) -> None:
    search = {
        "training.learning_rat": [1],
        "method.r": [4, 0],
        "training.seed": {"min": 0, "max": 9},
    }
    error = error_of(client.post("/sweeps", json=body(dataset_id, search)))
    assert [problem["param"] for problem in error["details"]] == [
        "search.method.r",
        "search.training.learning_rat",
        "search.training.seed",
    ]
    assert "3 problems in all" in error["message"]


def test_without_rows_to_choose_by_there_is_no_sweep(client: httpx.Client) -> None:
    made = client.post(
        "/datasets",
        files={"file": ("rows.jsonl", jsonl(records(40)))},
        data={"split": '{"fractions": [0.8, 0.0, 0.2]}'},
    ).json()
    response = client.post("/sweeps", json=body(made["id"]))
    assert (response.status_code, error_of(response)["code"]) == (400, "no_validation_rows")


def test_a_parent_is_the_one_that_the_name_means_now(
    client: httpx.Client, edge: Edge, dataset_id: str
) -> None:
    parent = edge.publish("mine")
    job = {"parent_adapter_id": "mine"}
    sweep = create(client, dataset_id, job=job, search={"training.seed": [0, 1]})
    assert sweep["job"]["parent_adapter_id"] == parent.id
    newer = edge.publish("mine", salt="newer")
    again = create(client, dataset_id, job=job, search={"training.seed": [0, 1]})
    assert again["job"]["parent_adapter_id"] == newer.id
    go_on(edge, sweep["id"])
    jobs = client.get("/jobs", params={"sweep": sweep["id"]}).json()["data"]
    assert {own["spec"]["parent_adapter_id"] for own in jobs} == {parent.id}
    assert {own["spec"]["method"][0]["r"] for own in jobs} == {16}
    refused = client.post("/sweeps", json=body(dataset_id, {"method.r": [4, 8]}, job=job))
    assert (refused.status_code, error_of(refused)["code"]) == (400, "parent_mismatch")


def test_another_tenant_has_another_world(
    client: httpx.Client, other: httpx.Client, stranger: httpx.Client, dataset_id: str
) -> None:
    sweep_id = create(client, dataset_id)["id"]
    for response in (other.get(f"/sweeps/{sweep_id}"), other.post(f"/sweeps/{sweep_id}:cancel")):
        assert (response.status_code, error_of(response)["code"]) == (404, "sweep_not_found")
    assert other.get("/sweeps").json()["data"] == []
    assert other.get("/jobs", params={"sweep": sweep_id}).json()["data"] == []
    theirs = other.post("/sweeps", json=body(dataset_id))
    assert (theirs.status_code, error_of(theirs)["code"]) == (404, "dataset_not_found")
    assert stranger.get(f"/sweeps/{sweep_id}").status_code == 401
    assert upload(other)["id"] != dataset_id


def test_a_sweep_goes_on_when_the_job_that_failed_it_is_retried(
    client: httpx.Client, edge: Edge, dataset_id: str
) -> None:
    def end(job_id: str, value: float | None) -> None:
        error = {"code": "storage_full", "message": "no room", "param": None}
        report = {"metric": "accuracy", "after": {"accuracy": value}, "best_step": 7}
        if value is None:
            run_to(edge, job_id, JobStatus.FAILED, error=error)
        else:
            run_to(edge, job_id, JobStatus.SUCCEEDED, metrics={"validation": report})

    def retry(job_id: str) -> None:
        response = client.post(f"/jobs/{job_id}:retry")
        assert response.status_code == 202, response.text

    sweep_id = create(client, dataset_id, search={"method.r": [4, 8]})["id"]
    path = f"/sweeps/{sweep_id}"
    go_on(edge, sweep_id)
    first, second = (trial["job_id"] for trial in client.get(path).json()["trials"])
    end(first, None)
    end(second, None)
    go_on(edge, sweep_id)
    assert client.get(path).json()["error"]["code"] == "sweep_failed"
    retry(first)
    shown = client.get(path).json()
    assert (shown["status"], shown["error"], shown["finished_at"]) == ("running", None, None)
    end(first, 0.5)
    go_on(edge, sweep_id)
    test_id = client.get(path).json()["test"]["job_id"]
    end(test_id, None)
    go_on(edge, sweep_id)
    assert client.get(path).json()["error"]["code"] == "storage_full"
    # the test is what failed it: a trial is tried again by itself
    retry(second)
    assert client.get(path).json()["status"] == "failed"
    retry(test_id)
    assert client.get(path).json()["status"] == "testing"
    end(test_id, 0.5)
    go_on(edge, sweep_id)
    shown = client.get(path).json()
    assert (shown["status"], shown["best"]["number"], shown["error"]) == ("succeeded", 0, None)


def test_a_trial_is_not_retried_while_its_sweep_is_being_cancelled(
    client: httpx.Client, edge: Edge, dataset_id: str
) -> None:
    sweep_id = create(client, dataset_id, search={"method.r": [4, 8]})["id"]
    go_on(edge, sweep_id)
    failed, running = (
        trial["job_id"] for trial in client.get(f"/sweeps/{sweep_id}").json()["trials"]
    )
    error = {"code": "storage_full", "message": "no room", "param": None}
    run_to(edge, failed, JobStatus.FAILED, error=error)
    attempt = run_to(edge, running, JobStatus.RUNNING)
    assert client.post(f"/sweeps/{sweep_id}:cancel").json()["status"] == "cancelling"
    refused = client.post(f"/jobs/{failed}:retry")
    assert (refused.status_code, error_of(refused)["code"]) == (409, "invalid_transition")
    assert "is being cancelled; retry the job when" in error_of(refused)["message"]
    with edge.database.write() as session:
        assert jobs.finish(session, running, attempt, JobStatus.CANCELLED)
    go_on(edge, sweep_id)
    assert client.get(f"/sweeps/{sweep_id}").json()["status"] == "cancelled"
    # by then it is a job like any other
    assert client.post(f"/jobs/{failed}:retry").status_code == 202
