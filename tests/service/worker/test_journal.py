"""The journal of an attempt on both databases: order, fence, and patience."""

from dataclasses import dataclass
from typing import Any

import pytest

from core.db import Session, events, jobs
from core.states import Phase
from tests.service.worker.conftest import BOTH
from tests.service.worker.stage import Stage, locked_jobs, wait_until
from worker.attempts import JobAttempts
from worker.heartbeat import Fenced
from worker.journal import JobKey, Journal

pytestmark = pytest.mark.parametrize("database_url", BOTH, indirect=True)


@dataclass(frozen=True)
class Event:
    kind: str
    data: dict[str, Any]


@pytest.fixture
def key(stage: Stage) -> JobKey:
    job_id = stage.add_job(send=False)
    attempts = JobAttempts(
        stage.database, stage.store, owner="test", lease_seconds=30, outage_seconds=20
    )
    job = attempts.claim(job_id)
    assert job is not None
    return JobKey(job_id, job.tenant_id, job.attempt)


def progress(step: int) -> Event:
    return Event("progress", {"step": step, "total_steps": 1000, "loss": 1.0})


def test_everything_said_is_written_in_order(stage: Stage, key: JobKey) -> None:
    with Journal(stage.database, key, has_first_step=False) as journal:
        journal.emit(Event("phase", {"phase": "tokenizing"}))
        journal.emit(Event("resolved", {"resolved": {"a": 1}, "trainable_parameters": 7}))
        journal.emit(Event("log", {"message": "three rows were cut", "level": "warning"}))
        for step in range(1, 501):
            journal.emit(progress(step))
            journal.emit(Event("metric", {"name": "train/loss", "step": step, "value": 1 / step}))
        journal.phase(Phase.EVALUATING)
        assert journal.flush(10)
    job = stage.job(key.job_id)
    assert (job.phase, job.resolved, job.trainable_parameters) == (Phase.EVALUATING, {"a": 1}, 7)
    assert job.progress == {"step": 500, "total_steps": 1000, "loss": 1.0, "percent": 50.0}
    assert job.first_step_at is not None
    told = [(event.event, event.message) for event in stage.events(key.job_id)]
    story = [line for line in told if line[0] != "progress"]
    assert story[-3:] == [
        ("status", "tokenizing"),
        ("log", "three rows were cut"),
        ("status", "evaluating"),
    ]
    # 500 steps in a moment are not 500 events
    assert 1 <= sum(event == "progress" for event, _ in told) <= 60
    with stage.database.read() as session:
        assert len(events.metrics(session, key.tenant_id, key.job_id, name="train/loss")) == 500


def test_the_first_step_is_noted_once_in_the_life_of_a_job(stage: Stage, key: JobKey) -> None:
    noted = []
    for has_first_step in (False, True):
        with Journal(stage.database, key, has_first_step=has_first_step) as journal:
            journal.emit(progress(1))
            assert journal.flush(10)
        noted.append(stage.job(key.job_id).first_step_at)
    assert noted[0] is not None
    assert noted[0] == noted[1]


def test_a_fenced_journal_writes_nothing_and_stops_the_training(stage: Stage, key: JobKey) -> None:
    with Journal(stage.database, key, has_first_step=True) as journal:
        with stage.database.write() as session:
            assert jobs.release(session, key.job_id, key.attempt, reason="test")
        before = len(stage.events(key.job_id))
        journal.log("too late")
        with pytest.raises(Fenced):
            journal.flush(10)
        with pytest.raises(Fenced):
            journal.check()
    assert len(stage.events(key.job_id)) == before


def test_a_database_that_is_away_delays_nothing_and_loses_nothing(
    stage: Stage, key: JobKey
) -> None:
    with Journal(stage.database, key, has_first_step=True) as journal:
        with locked_jobs(stage):
            journal.emit(progress(3))
            assert not journal.flush(0.3)
        assert journal.flush(20)
    assert (stage.job(key.job_id).progress or {})["step"] == 3


def test_a_fault_of_ours_reaches_the_training_thread(stage: Stage, key: JobKey) -> None:
    def write(session: Session) -> None:
        raise ZeroDivisionError

    with Journal(stage.database, key, has_first_step=True) as journal:
        journal.add(write)
        with pytest.raises(RuntimeError, match="journal"):
            journal.flush(10)


def test_follow_ups_come_after_the_commit(stage: Stage, key: JobKey) -> None:
    seen: list[str] = []

    def note(session: Session) -> None:
        jobs.update_fenced(session, key.job_id, key.attempt, reason="noted")

    with Journal(stage.database, key, has_first_step=True) as journal:
        journal.add(note, after=lambda: seen.append(str(stage.job(key.job_id).reason)))
        wait_until(lambda: seen, what="the follow-up")
    assert seen == ["noted"]
