"""Keys, scopes, and what somebody without a key can do: nothing, and quickly."""

import socket
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from app.main import create_app
from core.db import tenants
from core.settings import Settings
from tests.service.app.conftest import Edge
from tests.service.app.rows import error_of, jsonl, records, upload
from tests.service.app.running import run_server
from tests.service.servers.processes import wait_until

GUARDED = [
    ("GET", "/datasets"),
    ("POST", "/datasets"),
    ("GET", "/datasets/ds_x"),
    ("GET", "/datasets/ds_x/rows"),
    ("POST", "/datasets/ds_x:preview"),
    ("DELETE", "/datasets/ds_x"),
    ("GET", "/jobs"),
    ("POST", "/jobs"),
    ("GET", "/jobs/job_x"),
    ("GET", "/jobs/job_x/events"),
    ("GET", "/jobs/job_x/metrics"),
    ("GET", "/jobs/job_x/checkpoints"),
    ("POST", "/jobs/job_x/checkpoints/ckpt_x:publish"),
    ("POST", "/jobs/job_x:cancel"),
    ("POST", "/jobs/job_x:pause"),
    ("POST", "/jobs/job_x:resume"),
    ("POST", "/jobs/job_x:retry"),
    ("POST", "/jobs/job_x:start"),
    ("POST", "/jobs/job_x:reproduce"),
    ("GET", "/jobs/job_x/manifest"),
    ("GET", "/adapters"),
    ("POST", "/adapters"),
    ("POST", "/adapters:merge"),
    ("GET", "/adapters/adp_x"),
    ("GET", "/adapters/adp_x/export"),
    ("DELETE", "/adapters/adp_x"),
    ("GET", "/adapters/adp_x/lineage"),
    ("GET", "/aliases"),
    ("GET", "/aliases/x"),
    ("PUT", "/aliases/x"),
    ("DELETE", "/aliases/x"),
    ("POST", "/aliases/x:rollback"),
    ("GET", "/metrics"),
    ("GET", "/models"),
    ("GET", "/models/minilm"),
    ("POST", "/predict"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/minilm"),
    ("DELETE", "/v1/models/minilm"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/decisions"),
    ("POST", "/v1/uploads"),
    ("POST", "/v1/uploads/upload_x/parts"),
    ("POST", "/v1/uploads/upload_x/complete"),
    ("POST", "/v1/uploads/upload_x/cancel"),
    ("GET", "/v1/files"),
    ("POST", "/v1/files"),
    ("GET", "/v1/files/ds_x"),
    ("GET", "/v1/files/ds_x/content"),
    ("DELETE", "/v1/files/ds_x"),
    ("GET", "/v1/fine_tuning/jobs"),
    ("POST", "/v1/fine_tuning/jobs"),
    ("GET", "/v1/fine_tuning/jobs/job_x"),
    ("POST", "/v1/fine_tuning/jobs/job_x/cancel"),
    ("POST", "/v1/fine_tuning/jobs/job_x/pause"),
    ("POST", "/v1/fine_tuning/jobs/job_x/resume"),
    ("GET", "/v1/fine_tuning/jobs/job_x/events"),
    ("GET", "/v1/fine_tuning/jobs/job_x/checkpoints"),
    ("GET", "/v1/batches"),
    ("POST", "/v1/batches"),
    ("GET", "/v1/batches/batch_x"),
    ("POST", "/v1/batches/batch_x/cancel"),
    ("GET", "/estimates"),
    ("GET", "/estimates/est_x"),
    ("POST", "/estimates/est_x:cancel"),
    ("POST", "/jobs:estimate"),
    ("GET", "/sweeps"),
    ("POST", "/sweeps"),
    ("GET", "/sweeps/sweep_x"),
    ("POST", "/sweeps/sweep_x:cancel"),
    ("GET", "/v1/webhook_endpoints"),
    ("POST", "/v1/webhook_endpoints"),
    ("DELETE", "/v1/webhook_endpoints/x"),
    ("GET", "/v1/webhook_endpoints/x"),
    ("POST", "/v1/webhook_endpoints/x"),
    ("GET", "/v1/webhook_endpoints/x/deliveries"),
    ("POST", "/v1/webhook_endpoints/x/deliveries/whd_x/resend"),
    ("POST", "/v1/webhook_endpoints/x/rotate_secret"),
    ("POST", "/v1/webhook_endpoints/x/test"),
    ("GET", "/v1/webhook_event_types"),
    ("GET", "/keys"),
    ("POST", "/keys"),
    ("DELETE", "/keys/key_x"),
]


def test_every_route_asks_for_a_key(edge: Edge, stranger: httpx.Client) -> None:
    described = stranger.get("/openapi.json").json()["paths"]
    routes = {(method.upper(), path) for path, methods in described.items() for method in methods}
    assert len(routes) == len(GUARDED) + 2, "a new route: add it to GUARDED, or to the public ones"
    bad = [
        {},
        {"authorization": "Bearer tk_wrong"},
        {"authorization": "Basic dGs6eA=="},
        {"authorization": "Bearer"},
        {"x-api-key": "tk_wrong"},
        {"authorization": "Bearer " + "x" * 5000},
        {"authorization": "Bearer \xff\xfe"},
    ]
    for method, path in GUARDED:
        for headers in bad:
            sent = {name: value.encode("latin-1") for name, value in headers.items()}
            response = stranger.request(method, path, headers=sent)
            error = error_of(response)
            assert (response.status_code, error["code"]) == (401, "invalid_api_key"), path
            assert response.headers["www-authenticate"] == "Bearer"


def test_both_headers_carry_a_key(edge: Edge, stranger: httpx.Client) -> None:
    assert stranger.get("/jobs", headers={"x-api-key": edge.key}).status_code == 200
    assert stranger.get("/jobs", headers={"authorization": f"bearer {edge.key}"}).status_code == 200


def raw(edge: Edge, head: str, body: bytes = b"") -> socket.socket:
    url = httpx.URL(edge.url)
    connection = socket.create_connection((url.host, url.port), timeout=20)
    connection.sendall(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n" + body)
    return connection


def answer_of(connection: socket.socket) -> bytes:
    received = b""
    while piece := connection.recv(65536):
        received += piece
    connection.close()
    return received


def test_no_key_no_upload(edge: Edge) -> None:
    """The 401 comes although a gigabyte was announced and not one byte of it was sent."""
    for path, kind in (
        ("/datasets", "multipart/form-data; boundary=b"),
        ("/jobs", "application/json"),
    ):
        connection = raw(
            edge,
            f"POST {path} HTTP/1.1\nhost: x\nconnection: close\ncontent-length: 1000000000\n"
            f"content-type: {kind}\n",
        )
        assert answer_of(connection).startswith(b"HTTP/1.1 401 "), path


def test_too_large_is_told_before_it_is_sent(edge: Edge) -> None:
    for path, kind in (
        ("/datasets", "multipart/form-data; boundary=b"),
        ("/jobs", "application/json"),
    ):
        connection = raw(
            edge,
            f"POST {path} HTTP/1.1\nhost: x\nconnection: close\ncontent-length: 1000000000\n"
            f"content-type: {kind}\nauthorization: Bearer {edge.key}\n",
        )
        answer = answer_of(connection)
        assert answer.startswith(b"HTTP/1.1 413 "), path
        assert b'"code":"too_large"' in answer


def test_too_large_without_a_length(edge: Edge, client: httpx.Client) -> None:
    def endless() -> object:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
        for _ in range(80):
            yield b"x" * 100_000

    response = client.post(
        "/datasets",
        content=endless(),
        headers={"content-type": "multipart/form-data; boundary=b"},
    )
    assert (response.status_code, error_of(response)["code"]) == (413, "too_large")
    assert list((edge.settings.data_dir / "scratch").iterdir()) == []


def test_an_upload_that_stops_half_way(edge: Edge, client: httpx.Client) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
        + jsonl(records())
    )
    head = (
        f"POST /datasets HTTP/1.1\nhost: x\ncontent-length: {len(body) + 1000}\n"
        f"content-type: multipart/form-data; boundary=b\nauthorization: Bearer {edge.key}\n"
    )
    scratch = edge.settings.data_dir / "scratch"
    connection = raw(edge, head, body)
    wait_until(lambda: scratch.is_dir() and any(scratch.iterdir()), seconds=10)
    connection.close()
    wait_until(lambda: not any(scratch.iterdir()), seconds=10)
    assert client.get("/datasets").json()["data"] == []
    assert upload(client)["status"] == "ready"


def test_a_length_that_is_too_short(edge: Edge, client: httpx.Client) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
        + jsonl(records())
        + b"\r\n--b--\r\n"
    )
    head = (
        f"POST /datasets HTTP/1.1\nhost: x\nconnection: close\ncontent-length: {len(body) - 500}\n"
        f"content-type: multipart/form-data; boundary=b\nauthorization: Bearer {edge.key}\n"
    )
    answer = answer_of(raw(edge, head, body[:-500]))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"upload_incomplete"' in answer
    assert client.get("/datasets").json()["data"] == []


def test_keys_are_made_listed_and_revoked(edge: Edge, client: httpx.Client) -> None:
    response = client.post("/keys", json={"name": "ci", "scopes": ["read"]})
    made = response.json()
    assert response.status_code == 201
    assert made["key"].startswith(made["prefix"])
    mine = edge.client(made["key"])
    assert mine.get("/jobs").status_code == 200
    assert mine.get("/keys").status_code == 403
    assert mine.post("/jobs", json={}).status_code in {400, 403}
    listed = client.get("/keys").json()["data"]
    assert listed[0]["id"] == made["id"]
    assert all("key" not in row and "hash" not in row for row in listed)
    assert listed[0]["last_used_at"] is not None
    assert client.delete(f"/keys/{made['id']}").status_code == 200
    assert mine.get("/jobs").status_code == 401
    assert client.delete("/keys/key_none").status_code == 404
    for wrong in (
        {"scopes": ["root"]},
        {"scopes": []},
        {"expires_at": "2001-01-01T00:00:00Z"},
        {"expires_at": "2999-01-01T00:00:00"},
        {"expires_at": "9999-12-31T23:59:59-14:00"},
        {"name": "No Spaces"},
    ):
        assert client.post("/keys", json=wrong).status_code == 400, wrong
    made = client.post("/keys", json={"expires_at": "2999-01-01T00:00:00+02:00"}).json()
    assert made["expires_at"] == "2998-12-31T22:00:00.000Z"


def test_a_key_of_another_tenant_cannot_be_revoked(
    edge: Edge, client: httpx.Client, other: httpx.Client
) -> None:
    made = client.post("/keys", json={"name": "ci"}).json()
    assert other.delete(f"/keys/{made['id']}").status_code == 404
    assert made["id"] not in {row["id"] for row in other.get("/keys").json()["data"]}
    assert edge.client(made["key"]).get("/jobs").status_code == 200


def test_an_expired_key(edge: Edge) -> None:
    with edge.database.write() as session:
        tenant = tenants.ensure_tenant(session, name="default")
        secret = tenants.create_key(
            session, tenant.id, name="old", expires_at=datetime.now(UTC) - timedelta(seconds=1)
        ).secret
    assert edge.client(secret).get("/jobs").status_code == 401


def test_without_auth_only_this_machine_is_answered(settings: Settings) -> None:
    from core.db.migrate import upgrade

    upgrade(settings.database_url)
    with (
        run_server(create_app(settings.model_copy(update={"auth": "off"}))) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        assert client.get("/jobs").status_code == 200
        assert upload(client)["status"] == "ready"
        local = {"host": "localhost:8000", "origin": "http://localhost:3000"}
        assert client.get("/jobs", headers=local).status_code == 200
        for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
            response = client.get("/jobs", headers=headers)
            assert response.status_code == 403, headers
            assert error_of(response)["code"] == "host_not_allowed"


def test_auth_cannot_be_off_for_the_network() -> None:
    with pytest.raises(ValueError, match="loopback"):
        Settings(auth="off", host="0.0.0.0")
