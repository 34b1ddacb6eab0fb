"""Webhook endpoints as the official client makes and tests them; no worker runs."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import redis
import sqlalchemy as sa
from openai import OpenAI

from app.main import create_app
from core.db import Database, tenants, webhooks
from core.db.migrate import upgrade
from core.db.models import WebhookEndpoint
from core.queue import HOUSEKEEPING
from core.settings import load_settings
from core.states import JobStatus, WebhookEventType
from tests.service.app.rows import upload
from tests.service.app.running import run_server
from tests.service.openai.conftest import open_clients
from tests.service.receiver import Receiver, run_receiver
from tests.service.servers.processes import free_port, wait_until
from tests.service.servers.valkey import ValkeyServer

WANTED = ["fine_tuning.job.succeeded", "batch.expired"]
PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Desk:
    """A running api with its broker, and a receiver."""

    url: str
    database: Database
    broker: redis.Redis
    client: OpenAI
    other: OpenAI
    receiver: Receiver

    def create(self, path: str = "/ok") -> Any:
        return self.client.webhooks.create(
            name="ci", url=self.receiver.url + path, event_types=["fine_tuning.job.cancelled"]
        )

    def http(self, key: str | None = None) -> httpx.Client:
        """Speak without the client: it does not know what is ours."""
        headers = {"authorization": f"Bearer {key or self.client.api_key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30)

    def new_key(self, *scopes: str) -> str:
        with self.database.write() as session:
            tenant = tenants.ensure_tenant(session, name="default")
            return tenants.create_key(session, tenant.id, name="limited", scopes=scopes).secret

    def waiting_messages(self) -> int:
        return int(self.broker.llen(HOUSEKEEPING))


def open_desk(stack: ExitStack, folder: Path, valkey: ValkeyServer, **changes: Any) -> Desk:
    settings = load_settings(data_dir=folder, broker_url=valkey.database(8), **changes)
    upgrade(settings.database_url)
    database = Database(settings.database_url)
    stack.callback(database.dispose)
    broker = stack.enter_context(redis.Redis.from_url(valkey.database(8)))
    broker.flushdb()
    url = stack.enter_context(run_server(create_app(settings)))
    receiver = stack.enter_context(run_receiver())
    return Desk(url, database, broker, *open_clients(stack, database, url), receiver)


@pytest.fixture
def desk(tmp_path: Path, valkey_server: ValkeyServer) -> Iterator[Desk]:
    with ExitStack() as stack:
        yield open_desk(stack, tmp_path, valkey_server)


def test_an_endpoint_is_made_shown_changed_and_deleted(desk: Desk) -> None:
    hooks = desk.client.webhooks
    made = hooks.create(name="ci", url=f"{desk.receiver.url}/ok", event_types=WANTED[::-1])  # type: ignore[arg-type]
    assert made.signing_secret.startswith("whsec_")
    assert (made.object, made.name, made.event_types) == ("webhook_endpoint", "ci", WANTED)
    shown = hooks.retrieve(made.id)
    assert not hasattr(shown, "signing_secret")
    assert shown.signing_secret_hint == f"whsec_…{made.signing_secret.rstrip('=')[-4:]}"
    with desk.http() as http:
        assert made.signing_secret not in http.get(f"/v1/webhook_endpoints/{made.id}").text
    assert (shown.x_enabled, shown.x_delivered, shown.x_failed) == (True, 0, 0)  # type: ignore[attr-defined]
    changed = hooks.update(made.id, name="other", event_types=["batch.failed"])
    assert (changed.name, changed.event_types, changed.url) == ("other", ["batch.failed"], made.url)
    assert changed.created_at == made.created_at
    gone = hooks.delete(made.id)
    assert (gone.id, gone.deleted, gone.object) == (made.id, True, "webhook_endpoint.deleted")
    for call in (hooks.retrieve, hooks.delete):
        with pytest.raises(openai.NotFoundError) as told:
            call(made.id)
        assert told.value.code == "webhook_endpoint_not_found"


def test_a_lost_answer_makes_one_endpoint(desk: Desk) -> None:
    first, again = desk.create(), desk.create()
    assert again == first
    assert desk.create("/other").id != first.id
    wider = desk.client.webhooks.create(name="ci", url=first.url, event_types=WANTED)  # type: ignore[arg-type]
    assert wider.id != first.id
    theirs = desk.other.webhooks.create(
        name=first.name, url=first.url, event_types=["fine_tuning.job.cancelled"]
    )
    assert theirs.id != first.id
    rotated = desk.client.webhooks.rotate_secret(first.id)
    assert desk.create().signing_secret == rotated.signing_secret
    desk.client.webhooks.delete(first.id)
    assert desk.create().id != first.id


def test_a_key_is_one_wish_at_any_time(desk: Desk) -> None:
    def create(path: str, key: str) -> Any:
        return desk.client.webhooks.create(
            name="ci",
            url=desk.receiver.url + path,
            event_types=["batch.failed"],
            extra_headers={"Idempotency-Key": key},
        )

    first = create("/", "a")
    assert create("/", "b").id != first.id  # the same body, and another wish
    with desk.database.write() as session:
        session.execute(
            sa.update(WebhookEndpoint).values(created_at=datetime(2026, 1, 1, tzinfo=UTC))
        )
    again = create("/", "a")
    assert (again.id, again.signing_secret) == (first.id, first.signing_secret)
    with pytest.raises(openai.ConflictError) as told:
        create("/other", "a")
    assert told.value.code == "idempotency_mismatch"
    desk.client.webhooks.delete(first.id)
    with pytest.raises(openai.ConflictError, match="was deleted"):
        create("/", "a")


def test_lists_are_paged_newest_first(desk: Desk) -> None:
    made = [desk.create(f"/{place}").id for place in range(5)]
    desk.client.webhooks.delete(made.pop(2))
    assert [each.id for each in desk.client.webhooks.list(limit=2)] == made[::-1]
    assert list(desk.other.webhooks.list()) == []


def test_event_types_are_listed_and_others_refused(desk: Desk) -> None:
    known = desk.client.webhooks.event_types.list().data
    assert known == [kind.value for kind in WebhookEventType]
    for wrong in (["response.completed"], []):
        with pytest.raises(openai.BadRequestError) as told:
            desk.client.webhooks.create(name="ci", url="https://a.b/", event_types=wrong)  # type: ignore[arg-type]
        assert (told.value.param or "").startswith("event_types")


def test_another_tenants_endpoint_is_not_there(desk: Desk) -> None:
    made = desk.create()
    theirs = desk.other.webhooks
    for call in (
        lambda: theirs.retrieve(made.id),
        lambda: theirs.update(made.id, name="mine"),
        lambda: theirs.delete(made.id),
        lambda: theirs.rotate_secret(made.id),
        lambda: theirs.test(made.id, event_type="batch.failed"),
    ):
        with pytest.raises(openai.NotFoundError):
            call()
    with desk.http(desk.other.api_key) as http:
        assert http.get(f"/v1/webhook_endpoints/{made.id}/deliveries").status_code == 404
        resend = f"/v1/webhook_endpoints/{made.id}/deliveries/whd_1/resend"
        assert http.post(resend).status_code == 404
    assert desk.receiver.received == []


def test_all_of_it_needs_the_scope_write(desk: Desk) -> None:
    made = desk.create()
    root = f"/v1/webhook_endpoints/{made.id}"
    with desk.http(desk.new_key("read", "predict", "admin")) as http:
        answers = [
            http.get("/v1/webhook_endpoints"),
            http.get(root),
            http.get(f"{root}/deliveries"),
            http.get("/v1/webhook_event_types"),
            http.post(f"{root}/test", json={}),
            http.post(root, json={"name": "x"}),
            http.delete(root),
        ]
    assert {(each.status_code, each.json()["error"]["code"]) for each in answers} == {
        (403, "missing_scope")
    }


def test_a_sample_is_sent_at_once_and_read_by_the_client(desk: Desk) -> None:
    made = desk.create()
    result = desk.client.webhooks.test(made.id, event_type="batch.failed")
    assert (result.object, result.success, result.status_code) == (
        "webhook_endpoint.test",
        True,
        204,
    )
    assert (result.webhook_endpoint_id, result.event_type) == (made.id, "batch.failed")
    (message,) = desk.receiver.received
    event = desk.client.webhooks.unwrap(message.body, message.headers, secret=made.signing_secret)
    assert (event.type, event.data.id) == ("batch.failed", "batch_" + "0" * 26)
    with desk.http() as http:
        sent = http.post(f"/v1/webhook_endpoints/{made.id}/test")  # a body is not needed
        assert sent.json()["event_type"] == "fine_tuning.job.succeeded"
        assert http.get(f"/v1/webhook_endpoints/{made.id}/deliveries").json()["data"] == []


def test_a_sample_that_is_not_taken_tells_why(desk: Desk) -> None:
    refusing = desk.create("/status/503")
    answered = desk.client.webhooks.test(refusing.id, event_type="batch.failed")
    assert answered.status_code == 503
    silent = desk.client.webhooks.create(
        name="ci", url=f"http://127.0.0.1:{free_port()}/", event_types=["batch.failed"]
    )
    with pytest.raises(openai.BadRequestError) as told:
        desk.client.webhooks.test(silent.id, event_type="batch.failed")
    assert told.value.code == "webhook_unreachable"
    assert "the connection was refused" in told.value.message


def test_tests_do_not_take_the_service_for_themselves(desk: Desk) -> None:
    held = desk.create("/hold")
    path = f"/v1/webhook_endpoints/{held.id}/test"
    with desk.http() as http, ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(http.post, path) for _ in range(4)]
        wait_until(lambda: len(desk.receiver.received) == 4, seconds=PATIENCE_SECONDS)
        refused = http.post(path)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert http.get("/v1/webhook_endpoints").status_code == 200
        desk.receiver.gate.set()
        assert [each.result().json()["status_code"] for each in waiting] == [200] * 4
        assert http.post(path).status_code == 200


def test_a_secret_is_replaced(desk: Desk) -> None:
    made = desk.create()
    new = desk.client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    assert new.signing_secret != made.signing_secret
    desk.client.webhooks.test(made.id, event_type="batch.failed")
    last = desk.client.webhooks.rotate_secret(made.id)
    desk.client.webhooks.test(made.id, event_type="batch.failed")
    first, second = desk.receiver.received
    for message, good, bad in ((first, new, last), (second, last, new)):
        desk.client.webhooks.unwrap(message.body, message.headers, secret=good.signing_secret)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            desk.client.webhooks.unwrap(message.body, message.headers, secret=bad.signing_secret)


def test_addresses_inside_are_refused_unless_the_operator_allows_them(
    tmp_path: Path, valkey_server: ValkeyServer
) -> None:
    with ExitStack() as stack:
        desk = open_desk(stack, tmp_path, valkey_server, host="0.0.0.0")
        for url in ("http://example.com/", "https://127.0.0.1/", "https://169.254.169.254/"):
            with pytest.raises(openai.BadRequestError) as told:
                desk.client.webhooks.create(name="ci", url=url, event_types=["batch.failed"])
            assert (told.value.code, told.value.param) == ("webhook_address_refused", "url")
        port = desk.receiver.url.rpartition(":")[2]
        made = desk.client.webhooks.create(
            name="ci", url=f"https://0x7f000001:{port}/ok", event_types=["batch.failed"]
        )
        with pytest.raises(openai.BadRequestError) as told:
            desk.client.webhooks.test(made.id, event_type="batch.failed")
        assert "is not an address of the public internet" in told.value.message
        with pytest.raises(openai.BadRequestError):
            desk.client.webhooks.update(made.id, url="https://10.0.0.1/")
        assert desk.receiver.connections == 0


def test_a_job_that_is_cancelled_while_it_waits_is_told_of_at_once(desk: Desk) -> None:
    made = desk.create()
    with desk.http() as http:
        dataset_id = upload(http)["id"]
        jobs = [
            http.post("/jobs", json={"dataset_id": dataset_id, "base_model": base}).json()["id"]
            for base in ("minilm", "minilm@int8")
        ]
        before = desk.waiting_messages()
        assert http.post(f"/jobs/{jobs[0]}:cancel").json()["status"] == JobStatus.CANCELLED
        desk.client.fine_tuning.jobs.cancel(jobs[1])
        assert desk.waiting_messages() == before + 2
        page = http.get(f"/v1/webhook_endpoints/{made.id}/deliveries", params={"limit": 1}).json()
        rest = http.get(
            f"/v1/webhook_endpoints/{made.id}/deliveries", params={"after": page["last_id"]}
        ).json()
    assert (page["has_more"], rest["has_more"]) == (True, False)
    rows = page["data"] + rest["data"]
    assert [row["event"]["data"]["id"] for row in rows] == jobs[::-1]
    assert {(row["status"], row["attempts"], row["event"]["type"]) for row in rows} == {
        ("pending", 0, "fine_tuning.job.cancelled")
    }
    assert rows[0]["id"].startswith("whd_")


def test_a_disabled_endpoint_is_enabled_and_sent_to_again(desk: Desk) -> None:
    made = desk.create()
    with desk.database.write() as session:
        owner = tenants.ensure_tenant(session, name="default").id
        webhooks.announce(
            session, tenant_id=owner, type=WebhookEventType.JOB_CANCELLED, object_id="job_1"
        )
        (claim,) = webhooks.claim(session, limit=1, per_endpoint=1, lease_seconds=30)
        assert webhooks.note_failed(session, claim, error="answered 410", is_gone=True)
    path = f"/v1/webhook_endpoints/{made.id}"
    again = f"{path}/deliveries/{claim.delivery_id}/resend"
    with desk.http() as http:
        shown = http.get(path).json()
        assert (shown["x_enabled"], shown["x_disabled_reason"]) == (False, "answered 410")
        assert shown["x_failed"] == 1
        assert http.post(again).json()["error"]["code"] == "webhook_disabled"
        enabled = http.post(path, json={"x_enabled": True}).json()
        assert (enabled["x_enabled"], enabled["x_disabled_reason"]) == (True, None)
        before = desk.waiting_messages()
        assert http.post(again).json()["status"] == "pending"
        assert desk.waiting_messages() == before + 1
        unknown = http.post(f"{path}/deliveries/whd_unknown/resend")
        assert unknown.json()["error"]["code"] == "webhook_delivery_not_found"
        numbers = http.get("/metrics").text
    assert 'tunery_webhook_deliveries_total{outcome="failed"} 1.0' in numbers
    assert 'tunery_webhook_deliveries_total{outcome="delivered"} 0.0' in numbers
    assert "tunery_webhook_deliveries_pending 1.0" in numbers
    assert "tunery_webhook_deliveries_created" not in numbers
