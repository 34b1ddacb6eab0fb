"""Jobs over HTTP, and what a worker and an inference process do to them."""

from typing import Any

import httpx
import redis

from core.db import jobs, nodes
from core.queue import TRAINING
from core.states import JobStatus
from tests.service.app.conftest import Edge


def spec(dataset_id: str, **more: Any) -> dict[str, Any]:
    return {"dataset_id": dataset_id, "base_model": "minilm"} | more


def create(client: httpx.Client, dataset_id: str, **more: Any) -> dict[str, Any]:
    response = client.post("/jobs", json=spec(dataset_id, **more))
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


def waiting(broker: redis.Redis) -> int:
    return int(broker.llen(TRAINING))


def announce(edge: Edge, *bases: dict[str, Any]) -> None:
    """Tell of bases as an inference process does that has looked at them."""
    with edge.database.write() as session:
        nodes.announce(
            session,
            id="node_1",
            url="http://127.0.0.1:1",
            bases=list(bases),
            device="cpu",
            precision={},
            status="ready",
        )


def run_to(edge: Edge, job_id: str, status: JobStatus, **values: Any) -> int:
    """Take a job as a worker does, and end it; gives the attempt."""
    with edge.database.write() as session:
        claim = jobs.claim(session, job_id, owner="test", lease_seconds=60)
        assert claim is not None
        if status is not JobStatus.RUNNING:
            assert jobs.finish(session, job_id, claim.attempt, status, **values)
        return claim.attempt
