"""Faults of the broker: a message is a hint, and no job is lost or done twice for want of one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.db import Database
from core.settings import Settings
from core.states import JobStatus
from tests.service.servers.valkey import ValkeyServer, run_valkey
from tests.service.worker.conftest import TWIN_APP
from tests.service.worker.stage import Stage, closing, wait_until


@pytest.fixture
def own_broker() -> Iterator[ValkeyServer]:
    """A broker for one test, which may kill it."""
    with run_valkey() as server:
        yield server


@pytest.fixture
def fragile_stage(
    own_broker: ValkeyServer, fast_settings: Settings, database: Database, tmp_path: Path
) -> Iterator[Stage]:
    settings = fast_settings.model_copy(update={"broker_url": own_broker.url})
    yield from closing(Stage(settings, database, tmp_path, TWIN_APP))


def test_a_broker_killed_during_a_job_loses_nothing(
    fragile_stage: Stage, own_broker: ValkeyServer
) -> None:
    stage = fragile_stage
    stage.start_worker()
    job_id = stage.add_held_job(5)
    stage.wait_held(5)
    own_broker.kill()
    while_down = stage.add_job(steps=2, send=False)
    assert not stage.queue.send_training(while_down)
    own_broker.start()
    stage.open_gate(5)
    assert stage.wait_end(job_id).status is JobStatus.SUCCEEDED
    assert stage.wait_end(while_down).status is JobStatus.SUCCEEDED
    assert stage.job(job_id).attempt == 1
    assert stage.traced_steps() == list(range(1, 11))
    stage.close()


def test_a_queued_job_without_a_message_is_found_by_the_service_itself(stage: Stage) -> None:
    stage.start_worker()
    stage.start_worker("housekeeping")
    stage.start_beat()
    job_id = stage.add_job(steps=2, send=False)
    assert stage.wait_status(job_id, JobStatus.SUCCEEDED).attempt == 1


def test_a_message_for_nothing_is_dropped(stage: Stage) -> None:
    stage.start_worker()
    assert stage.queue.send_training("job_00000000000000000000000000")
    cancelled = stage.add_job(send=False, trace=str(stage.trace))
    stage.cancel(cancelled)
    assert stage.queue.send_training(cancelled)
    job_id = stage.add_job(steps=2)
    assert stage.wait_status(job_id, JobStatus.SUCCEEDED).attempt == 1
    assert stage.job(cancelled).status is JobStatus.CANCELLED
    assert stage.traced_steps() == []


def test_the_consumer_says_that_it_is_alive(stage: Stage) -> None:
    worker = stage.start_worker("housekeeping")
    path = stage.folder / "run" / f"worker-{worker.pid}.alive"
    first = wait_until(lambda: path.exists() and path.stat().st_mtime_ns, what="a sign of life")
    wait_until(lambda: path.stat().st_mtime_ns > first, what="another sign of life")
