"""A job that several devices train, through real workers: a process for each, on one CPU here."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from core.states import JobStatus
from peft_engine.delta import Delta, load_delta
from tests.processes import command_line, descendants
from tests.service.servers.valkey import ValkeyServer
from tests.service.worker.stage import Stage, is_alive, kill, wait_until
from tests.service.worker.tiny_stage import tiny_stage

STEPS, HELD = 24, 6
TRAINING = {"seed": 1, "batch_size": 8, "early_stopping": None, "eval_every_steps": 10}


@pytest.fixture
def wide_stage(
    tmp_path: Path, _sqlite_template: Path, valkey_server: ValkeyServer
) -> Iterator[Stage]:
    rows = {"train": 64, "validation": 8}
    yield from tiny_stage(tmp_path, _sqlite_template, valkey_server, rows=rows, devices_per_job=2)


def add_job(stage: Stage, *, devices: int, **options: str) -> str:
    training = TRAINING | {"devices": devices}
    # each device draws dropout for its own rows
    method = {"type": "lora", "dropout": 0.0}
    return stage.add_job(
        base_model="tiny", steps=STEPS, method=method, training=training, **options
    )


def followers_of(pid: int) -> list[int]:
    return [found for found in descendants(pid) if "worker.follower" in command_line(found)]


def delta_of(stage: Stage, job_id: str) -> Delta:
    (row,) = [each for each in stage.adapters() if each.job_id == job_id]
    return load_delta(stage.store.get_bytes(row.key))


def test_several_devices_train_as_one_and_a_lost_one_loses_nothing(wide_stage: Stage) -> None:
    stage = wide_stage
    worker = stage.start_worker()
    plain = add_job(stage, devices=2)
    # a third and a fourth process load torch here
    assert stage.wait_end(plain, seconds=180).status is JobStatus.SUCCEEDED
    assert stage.job(plain).attempt == 1
    assert not followers_of(worker.pid)

    shaken = add_job(stage, devices=2, hold=str(HELD), gates=str(stage.folder))
    stage.wait_held(HELD)
    (follower,) = followers_of(worker.pid)
    kill(follower)
    stage.open_gate(HELD)
    ended = stage.wait_end(shaken, seconds=180)
    assert (ended.status, ended.attempt) == (JobStatus.SUCCEEDED, 2)
    told = [event.message for event in stage.events(shaken) if event.event == "log"]
    assert any("2 devices train this job" in message for message in told), told
    assert any("another process of this job is gone" in message for message in told), told
    assert any("resumed at step" in message for message in told), told
    assert stage.digest(shaken) == stage.digest(plain)

    one = add_job(stage, devices=1)
    assert stage.wait_end(one, seconds=120).status is JobStatus.SUCCEEDED
    wide, narrow = delta_of(stage, plain), delta_of(stage, one)
    assert wide.tensors.keys() == narrow.tensors.keys()
    for name, values in narrow.tensors.items():
        torch.testing.assert_close(wide.tensors[name], values, rtol=1e-3, atol=1e-5)


def test_the_others_die_with_their_trainer_and_obey_their_owner(wide_stage: Stage) -> None:
    stage = wide_stage
    worker = stage.start_worker()
    job_id = add_job(stage, devices=2, hold=f"{HELD},{HELD + 6}", gates=str(stage.folder))
    wait_until(stage.checkpoints, what="a first step", seconds=120)
    stage.wait_held(HELD)
    (follower,) = followers_of(worker.pid)
    kill(stage.trainer_of(worker))
    wait_until(lambda: not is_alive(follower), what="the follower dies with its lead")
    stage.open_gate(HELD)
    wait_until(
        lambda: any(row.step == HELD + 6 for row in stage.checkpoints()),
        what="the second attempt goes on",
        seconds=120,
    )
    (follower,) = followers_of(worker.pid)
    stage.cancel(job_id)
    assert stage.wait_end(job_id).status is JobStatus.CANCELLED
    wait_until(lambda: not is_alive(follower), what="the follower ends with the job")
    assert stage.job(job_id).attempt == 2
