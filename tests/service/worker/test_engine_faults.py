"""The faults that matter most again, with the real engine on a tiny BERT made by the test."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.db import Database
from core.settings import Settings
from core.states import JobStatus
from peft_engine.delta import load_delta
from tests.service.worker.conftest import BOTH
from tests.service.worker.stage import Stage, closing, kill, wait_until
from tests.service.worker.tiny_bert import make_rows, make_tiny_bert

STEPS = 240


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bert(tmp_path_factory.mktemp("tiny-bert"))


@pytest.fixture
def engine_stage(
    fast_settings: Settings, database: Database, tmp_path: Path, tiny_bert: Path
) -> Iterator[Stage]:
    settings = fast_settings.model_copy(
        update={"base_models": {"tiny": str(tiny_bert)}, "checkpoint_seconds": 0.05}
    )
    splits = {
        "train": make_rows(256, seed=1),
        "validation": make_rows(16, seed=2),
        "test": make_rows(32, seed=3),
    }
    stage = Stage(settings, database, tmp_path, "worker.celery_app", splits=splits)
    yield from closing(stage)


def add_job(stage: Stage, name: str) -> str:
    return stage.add_job(
        steps=STEPS,
        base_model="tiny",
        adapter_name=name,
        training={"batch_size": 32, "early_stopping": None, "eval_every_steps": 50},
    )


def wait_step(stage: Stage, job_id: str, attempt: int, step: int) -> None:
    """Wait until an attempt has reported a step; the job must not be over before."""

    def reached() -> bool:
        job = stage.job(job_id)
        assert job.status in {JobStatus.QUEUED, JobStatus.RUNNING}, job.status
        return job.attempt == attempt and int((job.progress or {}).get("step", 0)) >= step

    wait_until(reached, what=f"attempt {attempt} at step {step}", seconds=60)


def test_a_job_is_trained_published_and_can_be_read(engine_stage: Stage) -> None:
    stage = engine_stage
    stage.start_worker()
    job_id = add_job(stage, "first")
    job = stage.wait_end(job_id, seconds=60)
    assert (job.status, job.error) == (JobStatus.SUCCEEDED, None)
    (adapter,) = stage.adapters()
    delta = load_delta(stage.store.get_bytes(adapter.key))
    assert delta.digest == adapter.digest == stage.digest(job_id)
    assert adapter.labels == ["even", "odd"]
    assert adapter.parameters + delta.head_parameters == delta.parameters
    assert job.metrics is not None
    assert {"before", "after"} <= job.metrics["test"].keys()
    assert job.progress is not None
    assert job.progress["step"] == job.progress["total_steps"] == STEPS
    assert job.resolved is not None
    assert job.trainable_parameters == delta.parameters
    assert job.first_step_at is not None


@pytest.mark.parametrize("database_url", BOTH, indirect=True)
def test_killed_at_three_steps_and_drained_it_ends_as_if_undisturbed(engine_stage: Stage) -> None:
    stage = engine_stage
    worker = stage.start_worker()
    undisturbed = add_job(stage, "undisturbed")
    assert stage.wait_end(undisturbed, seconds=60).status is JobStatus.SUCCEEDED
    job_id = add_job(stage, "disturbed")
    wait_step(stage, job_id, 1, 5)
    kill(stage.trainer_of(worker))
    wait_step(stage, job_id, 2, 60)
    worker.stop_with(signal.SIGKILL)
    worker = stage.start_worker()
    stage.wait_running_sweeping(job_id, attempt=3)
    wait_step(stage, job_id, 3, 120)
    kill(stage.trainer_of(worker))
    wait_step(stage, job_id, 4, 170)
    second = stage.start_worker()
    assert worker.stop_with(signal.SIGTERM) == 0
    job = stage.wait_end(job_id, seconds=60)
    assert (job.status, job.attempt, job.error) == (JobStatus.SUCCEEDED, 5, None)
    assert stage.digest(job_id) == stage.digest(undisturbed)
    assert job.metrics is not None
    assert job.metrics["test"] == (stage.job(undisturbed).metrics or {})["test"]
    resumed = [e.message for e in stage.events(job_id) if "resumed at step" in e.message]
    assert len(resumed) >= 3
    assert second.process.poll() is None


def test_a_running_job_is_cancelled_within_two_seconds(engine_stage: Stage) -> None:
    stage = engine_stage
    stage.start_worker()
    job_id = add_job(stage, "unwanted")
    wait_step(stage, job_id, 1, 5)
    stage.cancel(job_id)
    assert stage.wait_status(job_id, JobStatus.CANCELLED, seconds=2).adapter_id is None


def test_what_the_engine_refuses_is_told_to_the_owner(engine_stage: Stage) -> None:
    stage = engine_stage
    stage.start_worker()
    job_id = stage.add_job(base_model="no-such-base")
    job = stage.wait_status(job_id, JobStatus.FAILED)
    assert job.attempt == 1
    assert job.error is not None
    assert job.error["code"] == "base_not_found"
    assert "tiny" in job.error["message"]
