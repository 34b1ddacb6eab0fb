"""What a job tells while it runs: events, streams, metrics, checkpoints."""

import json
from typing import Any

import httpx
import pytest

from app.routes import event_stream
from core.db import events, jobs
from core.errors import Unavailable
from core.states import JobStatus
from tests.service.app.conftest import Edge
from tests.service.app.job_steps import create, run_to


def test_events_by_poll(client: httpx.Client, dataset_id: str) -> None:
    job = create(client, dataset_id)
    path = f"/jobs/{job['id']}/events"
    first = client.get(path).json()
    assert [event["event"] for event in first["data"]] == ["status"]
    assert client.get(path, params={"after": first["last_seq"]}).json()["data"] == []
    client.post(f"/jobs/{job['id']}:cancel")
    page = client.get(path, params={"after": first["last_seq"], "limit": 1}).json()
    assert (len(page["data"]), page["has_more"]) == (1, True)
    rest = client.get(path, params={"after": page["last_seq"]}).json()
    assert [event["event"] for event in rest["data"]] == ["complete"]


def stream(response: httpx.Response) -> list[dict[str, str]]:
    """All events of a stream that ends."""
    found, event = [], {}
    for line in response.iter_lines():
        name, _, value = line.partition(":")
        if name:
            event[name] = value.strip()
        elif "data" in event:
            found.append(event)
            event = {}
        else:
            event = {}
    return found


def test_events_as_a_stream(client: httpx.Client, edge: Edge, dataset_id: str) -> None:
    job = create(client, dataset_id)
    path = f"/jobs/{job['id']}/events"
    with client.stream("GET", path, headers={"accept": "text/event-stream"}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        edge.client(edge.key).post(f"/jobs/{job['id']}:cancel").raise_for_status()
        found = stream(response)
    assert [event["event"] for event in found] == ["status", "status", "complete"]
    assert [json.loads(event["data"])["seq"] for event in found] == [
        int(event["id"]) for event in found
    ]
    resumed = {"accept": "text/event-stream", "last-event-id": found[1]["id"]}
    with client.stream("GET", path, headers=resumed) as response:
        assert [event["event"] for event in stream(response)] == ["complete"]


def test_a_quiet_stream_beats(
    client: httpx.Client, dataset_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "HEARTBEAT_SECONDS", 0.0)
    job = create(client, dataset_id)
    path, headers = f"/jobs/{job['id']}/events", {"accept": "text/event-stream"}
    with client.stream("GET", path, headers=headers) as response:
        beats = (line for line in response.iter_lines() if line == "event: heartbeat")
        assert next(beats)
        assert next(beats)


def test_a_stream_ends_with_its_key(client: httpx.Client, edge: Edge, dataset_id: str) -> None:
    """Somebody who may not ask any more is not told any more, though the job goes on."""
    path = f"/jobs/{create(client, dataset_id)['id']}/events"
    key = client.post("/keys", json={"name": "short", "scopes": ["read"]}).json()
    reader = edge.client(key["key"])
    with reader.stream("GET", path, headers={"accept": "text/event-stream"}) as response:
        lines = response.iter_lines()
        assert "event: status" in lines
        client.delete(f"/keys/{key['id']}").raise_for_status()
        assert [line for line in lines if line.startswith("event: ")] == []
    refused = reader.get(path, headers={"accept": "text/event-stream"})
    assert refused.json()["error"]["code"] == "invalid_api_key"


def test_a_stream_outlives_an_outage_of_the_database(
    client: httpx.Client, dataset_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = event_stream._look, iter([True, True, False])

    def flaky(*asked: Any) -> Any:
        if next(failures, False):
            raise Unavailable("away")
        return real(*asked)

    monkeypatch.setattr(event_stream, "_look", flaky)
    job = create(client, dataset_id)
    client.post(f"/jobs/{job['id']}:cancel")
    path, headers = f"/jobs/{job['id']}/events", {"accept": "text/event-stream"}
    with client.stream("GET", path, headers=headers) as response:
        assert [event["event"] for event in stream(response)][-1] == "complete"


def test_streams_hold_no_session(edge: Edge, client: httpx.Client, dataset_id: str) -> None:
    """More open streams than the pool has connections, and everything still answers."""
    job = create(client, dataset_id)
    path = f"/jobs/{job['id']}/events"
    with httpx.Client(
        base_url=edge.url,
        headers={"authorization": f"Bearer {edge.key}", "accept": "text/event-stream"},
        limits=httpx.Limits(max_connections=60),
        timeout=30,
    ) as streaming:
        opened = [
            streaming.send(streaming.build_request("GET", path), stream=True) for _ in range(50)
        ]
        assert {response.status_code for response in opened} == {200}
        assert client.get(f"/jobs/{job['id']}").json()["status"] == "queued"
        assert client.post(f"/jobs/{job['id']}:cancel").json()["status"] == "cancelled"
        assert {stream(response)[-1]["event"] for response in opened} == {"complete"}


def test_a_list_leaves_the_tables_of_a_report_out(
    client: httpx.Client, edge: Edge, dataset_id: str
) -> None:
    job_id = create(client, dataset_id)["id"]
    test = {"helped": "unclear", "verdict": "Unclear.", "details": {"classes": []}}
    run_to(edge, job_id, JobStatus.SUCCEEDED, metrics={"test": test})
    assert client.get(f"/jobs/{job_id}").json()["metrics"] == {"test": test}
    (listed,) = client.get("/jobs").json()["data"]
    assert listed["metrics"] == {"test": {"helped": "unclear", "verdict": "Unclear."}}


def test_metrics(client: httpx.Client, edge: Edge, dataset_id: str) -> None:
    job = create(client, dataset_id)
    with edge.database.write() as session:
        tenant_id = jobs.get_for_worker(session, job["id"]).tenant_id  # type: ignore[union-attr]
        for step in range(1, 101):
            for name in ("train/loss", "validation/loss"):
                events.put_metric(
                    session,
                    job_id=job["id"],
                    tenant_id=tenant_id,
                    attempt=1,
                    name=name,
                    step=step,
                    value=float("nan") if step == 50 else 1 / step,
                )
    path = f"/jobs/{job['id']}/metrics"
    everything = client.get(path).json()
    assert (len(everything["data"]), everything["names"]) == (
        200,
        ["train/loss", "validation/loss"],
    )
    few = client.get(path, params={"name": "train/loss", "resolution": 4}).json()["data"]
    assert [point["step"] for point in few] == [25, 50, 75, 100]
    assert few[1]["value"] is None
    part = client.get(path, params={"name": "train/loss", "from": 10, "to": 12}).json()["data"]
    assert [point["step"] for point in part] == [10, 11, 12]
