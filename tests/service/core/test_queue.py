"""Messages through a real broker, and what happens without one."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from core.queue import (
    HOUSEKEEPING,
    SWEEP_TASK,
    TRAIN_TASK,
    TRAINING,
    VALIDATE_TASK,
    JobQueue,
    make_celery,
)
from core.settings import load_settings
from tests.service.servers.processes import free_port
from tests.service.servers.valkey import ValkeyServer, run_valkey

DATABASE = 9


@pytest.fixture
def broker(valkey_server: ValkeyServer) -> Iterator[redis.Redis]:
    """An empty database of the broker, seen by an independent client."""
    client = redis.Redis.from_url(valkey_server.database(DATABASE))
    client.flushdb()
    yield client
    client.close()


@pytest.fixture
def queue(broker: redis.Redis, valkey_server: ValkeyServer) -> Iterator[JobQueue]:
    assert broker.ping()
    queue = JobQueue(load_settings(broker_url=valkey_server.database(DATABASE)))
    yield queue
    queue.close()


def _messages(broker: redis.Redis, name: str) -> list[dict[str, Any]]:
    return [json.loads(item) for item in broker.lrange(name, 0, -1)]


def test_a_message_is_one_id_on_the_right_queue(broker: redis.Redis, queue: JobQueue) -> None:
    assert queue.send_training("job_1")
    assert queue.send_housekeeping(VALIDATE_TASK, "ds_1")
    training, housekeeping = _messages(broker, TRAINING), _messages(broker, HOUSEKEEPING)
    assert [message["headers"]["task"] for message in training] == [TRAIN_TASK]
    assert [message["headers"]["task"] for message in housekeeping] == [VALIDATE_TASK]
    assert "job_1" in training[0]["headers"]["argsrepr"]
    assert training[0]["content-type"] == "application/json"


def test_urgent_messages_have_lists_of_their_own(broker: redis.Redis, queue: JobQueue) -> None:
    for priority in (0, 3, 9, 50, -5):
        assert queue.send_training(f"job_{priority}", priority=priority)
    lengths = {name.decode(): broker.llen(name) for name in broker.keys(f"{TRAINING}*")}
    assert lengths == {TRAINING: 2, f"{TRAINING}:3": 1, f"{TRAINING}:9": 2}


def test_a_worker_reads_what_was_sent(queue: JobQueue, valkey_server: ValkeyServer) -> None:
    assert queue.send_training("job_7")
    app = make_celery(load_settings(broker_url=valkey_server.database(DATABASE)))
    with app.connection_for_read() as connection:
        simple = connection.SimpleQueue(app.amqp.queues[TRAINING])
        message = simple.get(timeout=10)
        assert message.payload[0] == ["job_7"]
        message.ack()
        simple.close()


def test_many_threads_send_through_one_queue(broker: redis.Redis, queue: JobQueue) -> None:
    with ThreadPoolExecutor(8) as pool:
        sent = list(pool.map(lambda n: queue.send_training(f"job_{n}"), range(80)))
    assert all(sent)
    assert len(_messages(broker, TRAINING)) == 80


def test_ping(queue: JobQueue) -> None:
    assert queue.ping()


def _deaf_port() -> tuple[socket.socket, int]:
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(1)
    return server, server.getsockname()[1]


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "url", [None, "redis://127.0.0.1:{port}/0", "redis://no-such-host.invalid/0"]
)
def test_without_a_broker_nothing_is_sent_and_nothing_raised(url: str | None) -> None:
    settings = load_settings(broker_url=url and url.format(port=free_port()))
    queue = JobQueue(settings)
    assert not queue.send_training("job_1")
    assert not queue.send_housekeeping(SWEEP_TASK, "x")
    assert not queue.ping()
    queue.close()


@pytest.mark.timeout(30)
def test_a_broker_that_accepts_and_never_answers_counts_as_down() -> None:
    server, port = _deaf_port()
    with server:
        queue = JobQueue(load_settings(broker_url=f"redis://127.0.0.1:{port}/0"))
        assert not queue.ping()
        assert not queue.send_training("job_1")
        queue.close()


def test_a_sender_outlives_its_broker() -> None:
    with run_valkey() as server:
        queue = JobQueue(load_settings(broker_url=server.url))
        assert queue.send_training("job_1")
        server.kill()
        assert not queue.send_training("job_2")
        assert not queue.ping()
        server.start()
        assert queue.send_training("job_3")
        assert queue.ping()
        queue.close()


def test_the_settings_that_lose_messages_are_not_set() -> None:
    conf = make_celery(load_settings(broker_url="redis://127.0.0.1:1/0")).conf
    assert "retry_on_timeout" not in conf.broker_transport_options
    assert conf.worker_cancel_long_running_tasks_on_connection_loss is False
    assert conf.result_backend is None
    assert conf.task_acks_late is True
    assert conf.worker_prefetch_multiplier == 1
    assert conf.broker_transport_options["visibility_timeout"] == 86_400
