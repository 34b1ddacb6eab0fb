"""Webhooks through real workers: sent, sent again, never held up, and lost by nobody."""

import json
import signal
import threading
from collections.abc import Iterator

import pytest
from openai import OpenAI

from core.db import Database, webhooks
from core.db.models import WebhookDelivery
from core.queue import VALIDATE_TASK
from core.states import DeliveryStatus, JobStatus, WebhookEventType
from core.webhooks.signing import new_secret
from tests.service.receiver import Receiver, run_receiver
from tests.service.worker.conftest import BOTH
from tests.service.worker.stage import Stage, wait_until
from tests.service.worker.test_validation import GOOD, upload, wait_validated
from worker.webhooks import WebhookThread

PATIENCE_SECONDS = 60.0
SECRET = new_secret()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with run_receiver() as receiver:
        yield receiver


def add_endpoint(stage: Stage, url: str) -> str:
    with stage.database.write() as session:
        return webhooks.create(
            session,
            tenant_id=stage.tenant_id,
            name="test",
            url=url,
            event_types=tuple(WebhookEventType),
            secret=SECRET,
            may_be_private=True,
        ).id


def announce(stage: Stage, object_id: str, *, send: bool = True) -> None:
    """Tell of a batch, as whoever ends one will."""
    with stage.database.write() as session:
        webhooks.announce(
            session,
            tenant_id=stage.tenant_id,
            type=WebhookEventType.BATCH_COMPLETED,
            object_id=object_id,
        )
    if send:
        assert stage.queue.send_deliveries(object_id)


def deliveries(stage: Stage, endpoint_id: str) -> list[WebhookDelivery]:
    with stage.database.read() as session:
        page = webhooks.list_deliveries(session, stage.tenant_id, endpoint_id, limit=1000)
    return [row for row, _ in page.items]


def wait_ended(stage: Stage, endpoint_id: str, count: int = 1) -> list[WebhookDelivery]:
    """Wait until so many deliveries of an endpoint have ended."""

    def ended() -> list[WebhookDelivery] | None:
        rows = deliveries(stage, endpoint_id)
        is_over = len(rows) == count and all(row.due_at is None for row in rows)
        return rows if is_over else None

    found: list[WebhookDelivery] = wait_until(
        ended, what=f"{count} deliveries end", seconds=PATIENCE_SECONDS
    )
    return found


def wait_received(receiver: Receiver, path: str, count: int = 1) -> None:
    wait_until(
        lambda: len(receiver.at(path)) >= count,
        what=f"{count} messages at {path}",
        seconds=PATIENCE_SECONDS,
    )


@pytest.mark.parametrize("database_url", BOTH, indirect=True)
def test_the_end_of_a_job_is_told_and_the_official_client_reads_it(
    stage: Stage, receiver: Receiver
) -> None:
    endpoint_id = add_endpoint(stage, f"{receiver.url}/ok")
    stage.start_worker("housekeeping")
    stage.start_worker()
    job_id = stage.add_job(steps=2)
    stage.wait_status(job_id, JobStatus.SUCCEEDED)
    (row,) = wait_ended(stage, endpoint_id)  # without a sweep: a message said so
    assert (row.status, row.status_code, row.attempts) == (DeliveryStatus.DELIVERED, 204, 1)
    (message,) = receiver.received
    assert message.id == row.id
    event = OpenAI(api_key="none").webhooks.unwrap(message.body, message.headers, secret=SECRET)
    assert event.type == "fine_tuning.job.succeeded"
    assert event.data.id == job_id
    assert event.id == row.event_id
    assert set(json.loads(message.body)) == {"id", "object", "type", "created_at", "data"}


def test_a_job_that_fails_and_one_that_is_cancelled_are_told(
    stage: Stage, receiver: Receiver
) -> None:
    endpoint_id = add_endpoint(stage, f"{receiver.url}/ok")
    stage.start_worker("housekeeping")
    stage.start_beat()
    queued = stage.add_job(send=False)
    stage.cancel(queued)  # no message: the sweep finds it
    wait_ended(stage, endpoint_id)
    stage.start_worker()
    (stage.folder / "objects" / "deltas").write_text("in the way")
    failed = stage.add_job(steps=2, max_attempts=1)
    wait_ended(stage, endpoint_id, 2)
    told = [json.loads(each.body) for each in receiver.received]
    assert [(each["type"], each["data"]["id"]) for each in told] == [
        ("fine_tuning.job.cancelled", queued),
        ("fine_tuning.job.failed", failed),
    ]


def test_a_message_that_is_not_taken_is_sent_again_as_the_same(
    stage: Stage, receiver: Receiver
) -> None:
    endpoint_id = add_endpoint(stage, f"{receiver.url}/flaky")
    stage.start_worker("housekeeping")
    stage.start_beat()
    announce(stage, "batch_1")
    (row,) = wait_ended(stage, endpoint_id)
    assert (row.status, row.attempts, row.error) == (DeliveryStatus.DELIVERED, 2, None)
    first, second = receiver.received
    assert (first.id, first.body) == (second.id, second.body)
    stamps = [int(each.headers["webhook-timestamp"]) for each in (first, second)]
    assert stamps[1] >= stamps[0] + 5
    client = OpenAI(api_key="none", webhook_secret=SECRET)
    for each in (first, second):
        client.webhooks.unwrap(each.body, each.headers)


def test_a_redirect_is_not_followed_and_gone_disables(stage: Stage, receiver: Receiver) -> None:
    moved = add_endpoint(stage, f"{receiver.url}/redirect")
    gone = add_endpoint(stage, f"{receiver.url}/status/410")
    stage.start_worker("housekeeping")
    announce(stage, "batch_1")
    (row,) = wait_ended(stage, gone)
    assert (row.status, row.error) == (DeliveryStatus.FAILED, "answered 410")
    with stage.database.read() as session:
        assert webhooks.get(session, stage.tenant_id, gone).disabled_reason == "answered 410"
    wait_until(lambda: deliveries(stage, moved)[0].error, what="the redirect is noted")
    (row,) = deliveries(stage, moved)
    assert (row.status, row.error, row.status_code) == (
        DeliveryStatus.PENDING,
        "answered 302",
        302,
    )
    assert receiver.at("/ok") == []


def test_a_receiver_that_hangs_holds_up_nobody(stage: Stage, receiver: Receiver) -> None:
    dead = add_endpoint(stage, f"{receiver.url}/hold")
    alive = add_endpoint(stage, f"{receiver.url}/ok")
    for number in range(40):
        announce(stage, f"batch_{number}", send=False)
    stage.start_worker("housekeeping")
    stage.start_beat()
    wait_received(receiver, "/hold", 4)
    wait_ended(stage, alive, 40)
    # none of the dead one's has an outcome: no attempt of ten seconds was waited for
    assert {row.status_code for row in deliveries(stage, dead)} == {None}
    assert len(receiver.at("/hold")) == 4
    dataset_id = upload(stage, GOOD)
    assert stage.queue.send_housekeeping(VALIDATE_TASK, dataset_id)
    wait_validated(stage, dataset_id)


@pytest.mark.parametrize("database_url", BOTH, indirect=True)
def test_two_workers_send_each_message_once(stage: Stage, receiver: Receiver) -> None:
    endpoints = [add_endpoint(stage, f"{receiver.url}/status/20{number}") for number in range(5)]
    for number in range(12):
        announce(stage, f"batch_{number}", send=False)
    for _ in range(2):
        stage.start_worker("housekeeping")
    stage.start_beat()
    for endpoint_id in endpoints:
        rows = wait_ended(stage, endpoint_id, 12)
        assert {(row.status, row.attempts) for row in rows} == {(DeliveryStatus.DELIVERED, 1)}
    ids = [message.id for message in receiver.received]
    assert len(ids) == len(set(ids)) == 60


@pytest.mark.parametrize("database_url", BOTH, indirect=True)
def test_a_worker_that_is_killed_between_sending_and_noting_sends_again(
    stage: Stage, receiver: Receiver
) -> None:
    endpoint_id = add_endpoint(stage, f"{receiver.url}/hold")
    worker = stage.start_worker("housekeeping")
    announce(stage, "batch_1")
    wait_received(receiver, "/hold")
    worker.process.kill()
    worker.process.wait()
    receiver.gate.set()
    (row,) = deliveries(stage, endpoint_id)
    assert (row.status, row.attempts) == (DeliveryStatus.PENDING, 1)
    stage.start_worker("housekeeping")
    stage.start_beat()
    (row,) = wait_ended(stage, endpoint_id)  # after the lease of the lost attempt
    assert (row.status, row.attempts) == (DeliveryStatus.DELIVERED, 2)
    first, second = receiver.received
    assert (first.id, first.body) == (second.id, second.body)


def test_a_worker_that_is_told_to_stop_lets_what_is_under_way_end(
    stage: Stage, receiver: Receiver
) -> None:
    endpoint_id = add_endpoint(stage, f"{receiver.url}/hold")
    worker = stage.start_worker("housekeeping")
    announce(stage, "batch_1")
    wait_received(receiver, "/hold")
    worker.signal(signal.SIGTERM)
    wait_until(lambda: "Warm shutdown" in stage.logs(), what="the worker stops")
    receiver.gate.set()
    assert worker.process.wait(PATIENCE_SECONDS) == 0
    (row,) = deliveries(stage, endpoint_id)
    assert (row.status, row.attempts) == (DeliveryStatus.DELIVERED, 1)


def test_a_worker_that_allows_no_private_address_sends_to_none(
    stage: Stage, receiver: Receiver
) -> None:
    """Whatever the api allowed: the two may have different settings."""
    endpoint_id = add_endpoint(stage, f"{receiver.url}/ok")
    announce(stage, "batch_1", send=False)
    sender = WebhookThread(
        lambda: stage.database, lease_seconds=3.0, may_be_private=False, stopping=threading.Event()
    )
    sender.wake()
    wait_until(lambda: deliveries(stage, endpoint_id)[0].error, what="the refusal is noted")
    sender.close()
    assert receiver.connections == 0


def test_a_sender_that_broke_is_replaced_when_it_is_woken(stage: Stage, receiver: Receiver) -> None:
    endpoint_id = add_endpoint(stage, f"{receiver.url}/ok")
    announce(stage, "batch_1", send=False)
    faults = [RuntimeError("a fault of ours")]

    def open_database() -> Database:
        if faults:
            raise faults.pop()
        return stage.database

    sender = WebhookThread(
        open_database, lease_seconds=3.0, may_be_private=True, stopping=threading.Event()
    )

    def has_ended() -> bool:
        sender.wake()
        return deliveries(stage, endpoint_id)[0].due_at is None

    wait_until(has_ended, what="delivered by another thread")
    sender.close()
    sender.wake()  # nothing is begun after the end
    assert faults == []
