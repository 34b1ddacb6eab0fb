"""`GET /metrics`: what a monitor is told, and what it is not."""

import re

import httpx
import sqlalchemy as sa

from core.db import clock, jobs
from core.db.models import Job
from tests.service.app.conftest import Edge
from tests.service.app.rows import error_of, upload


def read_page(client: httpx.Client) -> dict[str, float]:
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = re.findall(r"^([^# ]+) (\S+)$", response.text, flags=re.MULTILINE)
    return {name: float(value) for name, value in samples}


def create_job(client: httpx.Client) -> str:
    body = {"dataset_id": upload(client)["id"], "base_model": "minilm"}
    return str(client.post("/jobs", json=body).json()["id"])


def test_requests_are_counted_by_route_and_never_by_what_strangers_try(
    client: httpx.Client, stranger: httpx.Client
) -> None:
    client.get("/jobs/job_unknown1")
    client.get("/jobs/job_unknown2")
    for path in ("/wp-login.php", "/%F0%9F%92%A9"):
        stranger.get(path)
    stranger.request("FOO", "/jobs")
    page = read_page(client)
    counted = 'tunery_http_request_seconds_count{method="%s",route="%s",status="%s"}'
    assert page[counted % ("GET", "/jobs/{job_id}", 404)] == 2
    assert page[counted % ("GET", "none", 404)] == 2
    assert not any("unknown1" in name or "wp-login" in name or "FOO" in name for name in page)
    slower = counted.replace("_count{", '_bucket{le="+Inf",')
    assert page[slower % ("GET", "/jobs/{job_id}", 404)] == 2


def test_jobs_of_every_tenant_are_counted_without_names(
    edge: Edge, client: httpx.Client, other: httpx.Client
) -> None:
    mine = create_job(client)
    theirs = create_job(other)
    page = read_page(client)
    assert page['tunery_jobs{status="queued"}'] == 2
    assert page['tunery_jobs{status="failed"}'] == 0
    assert page["tunery_datasets_validating"] == 0
    assert page["tunery_jobs_lease_expired"] == 0
    text = client.get("/metrics").text
    assert mine not in text
    assert theirs not in text


def test_a_lost_worker_is_seen_while_nobody_sweeps(edge: Edge, client: httpx.Client) -> None:
    job_id = create_job(client)
    with edge.database.write() as session:
        assert jobs.claim(session, job_id, owner="gone", lease_seconds=60) is not None
        session.execute(sa.update(Job).values(lease_until=clock.later(-1)))
    assert read_page(client)["tunery_jobs_lease_expired"] == 1


def test_a_key_is_needed_that_may_read(edge: Edge, stranger: httpx.Client) -> None:
    assert error_of(stranger.get("/metrics"))["code"] == "invalid_api_key"
    refused = edge.client(edge.new_key("predict")).get("/metrics")
    assert error_of(refused)["code"] == "missing_scope"
    assert edge.client(edge.new_key("read")).get("/metrics").status_code == 200
