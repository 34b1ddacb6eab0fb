"""Several jobs in one trainer child, with the real engine on a tiny BERT made by the test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.states import JobStatus
from tests.service.servers.valkey import ValkeyServer
from tests.service.worker.stage import Stage, kill, wait_until
from tests.service.worker.tiny_stage import tiny_stage

STEPS = 24


@pytest.fixture
def company_stage(
    tmp_path: Path, _sqlite_template: Path, valkey_server: ValkeyServer
) -> Iterator[Stage]:
    rows = {"train": 64, "validation": 8}
    bases = ("tiny", "other")
    yield from tiny_stage(tmp_path, _sqlite_template, valkey_server, rows=rows, bases=bases)


def add_job(stage: Stage, seed: int, *, base_model: str = "tiny", **metadata: str) -> str:
    training = {"seed": seed, "batch_size": 8, "early_stopping": None, "eval_every_steps": 10}
    return stage.add_job(
        base_model=base_model,
        adapter_name=f"job-{seed}",
        steps=STEPS,
        training=training | {"epochs": 3},
        **metadata,
    )


def test_jobs_train_in_company_and_what_becomes_of_one_touches_no_other(
    company_stage: Stage,
) -> None:
    stage = company_stage
    worker = stage.start_worker()
    host = add_job(stage, 1, hold="3,9,15", gates=str(stage.folder))
    # the worker and its child load torch first
    wait_until(stage.checkpoints, what="the first step of the first job", seconds=90)
    stage.wait_held(3)
    guest, unwanted = add_job(stage, 2), add_job(stage, 3)
    elsewhere = add_job(stage, 4, base_model="other")
    behind = add_job(stage, 5)
    for job_id in (guest, unwanted):
        stage.wait_status(job_id, JobStatus.RUNNING)
    assert (stage.job(guest).attempt, stage.job(unwanted).attempt) == (1, 1)
    stage.open_gate(3)
    stage.wait_held(9)
    # the queue is taken in its order: a job for another base is not overtaken
    assert stage.job(elsewhere).status is JobStatus.QUEUED
    assert stage.job(behind).status is JobStatus.QUEUED

    stage.cancel(unwanted)
    stage.open_gate(9)
    assert stage.wait_status(unwanted, JobStatus.CANCELLED).adapter_id is None
    stage.wait_held(15)
    assert stage.job(guest).status is JobStatus.RUNNING
    told = [event.message for event in stage.events(guest) if event.event == "log"]
    assert any("on the same base" in message for message in told), told

    kill(stage.trainer_of(worker))
    stage.open_gate(15)
    ends = [stage.wait_end(job_id, seconds=120) for job_id in (host, guest, elsewhere, behind)]
    assert [job.status for job in ends] == [JobStatus.SUCCEEDED] * 4
    assert [job.attempt for job in ends] == [2, 2, 1, 1]

    again = []
    for seed in (1, 2):
        again.append(add_job(stage, seed))
        stage.wait_end(again[-1], seconds=60)
    assert [stage.digest(job_id) for job_id in again] == [
        stage.digest(host),
        stage.digest(guest),
    ]
    assert stage.digest(host) != stage.digest(guest)
    wait_until(lambda: worker.process.poll() is None, what="the worker is alive")
