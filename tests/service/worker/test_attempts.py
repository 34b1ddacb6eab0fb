"""The supervisor's writes to a job's row, on both databases."""

from typing import Any

import pytest
import sqlalchemy as sa

from core.db import adapters, jobs
from core.db.models import Job
from core.states import JobStatus
from tests.service.worker.conftest import BOTH
from tests.service.worker.stage import Stage
from worker.attempts import JobAttempts
from worker.heartbeat import Fenced
from worker.protocol import Failure
from worker.training import ClaimedJob

pytestmark = pytest.mark.parametrize("database_url", BOTH, indirect=True)

BROKEN = Failure(code="trainer_crashed", message="The trainer process ended.", retry=True)
AWAY = Failure(
    code="storage_unavailable", message="the store does not answer", retry=True, outage=True
)


def attempts_of(stage: Stage) -> JobAttempts:
    return JobAttempts(
        stage.database, stage.store, owner="test", lease_seconds=30, outage_seconds=20
    )


def put(stage: Stage, job_id: str, **values: Any) -> None:
    with stage.database.write() as session:
        session.execute(sa.update(Job).where(Job.id == job_id).values(**values))


def claim(stage: Stage, job_id: str) -> ClaimedJob:
    job = attempts_of(stage).claim(job_id)
    assert job is not None
    return job


def test_a_published_job_does_not_fence_its_own_supervisor(stage: Stage) -> None:
    attempts, job_id = attempts_of(stage), stage.add_job(send=False)
    job = claim(stage, job_id)
    with stage.database.write() as session:
        assert jobs.finish(session, job_id, job.attempt, JobStatus.SUCCEEDED)
    assert attempts.beat(job) is None


def test_an_older_attempt_can_do_nothing(stage: Stage) -> None:
    attempts, job_id = attempts_of(stage), stage.add_job(send=False)
    old = claim(stage, job_id)
    assert attempts.release_failed(old, BROKEN)
    new = claim(stage, job_id)
    assert (old.attempt, new.attempt) == (1, 2)
    with pytest.raises(Fenced):
        attempts.beat(old)
    assert not attempts.release_drained(old)
    assert not attempts.release_failed(old, BROKEN)
    assert not attempts.finish_failed(old, BROKEN)
    assert not attempts.finish_cancelled(old)
    assert attempts.beat(new) is None
    job = stage.job(job_id)
    assert (job.status, job.attempt, job.error) == (JobStatus.RUNNING, 2, None)


def test_a_crash_counts_and_a_drain_does_not(stage: Stage) -> None:
    attempts, job_id = attempts_of(stage), stage.add_job(send=False, max_attempts=2)
    assert attempts.release_drained(claim(stage, job_id))
    assert stage.job(job_id).max_attempts == 3
    assert attempts.release_failed(claim(stage, job_id), BROKEN)
    assert stage.job(job_id).max_attempts == 3
    last = claim(stage, job_id)
    assert (last.attempt, last.max_attempts) == (3, 3)


def test_who_met_an_outage_waits_longer_each_time_and_its_story_says_so(stage: Stage) -> None:
    attempts, job_id = attempts_of(stage), stage.add_job(send=False)
    for wait in (20, 40, 80):
        assert attempts.release_failed(claim(stage, job_id), AWAY)
        assert attempts.claim(job_id) is None
        warning = [row.message for row in stage.events(job_id) if row.event == "log"][-1]
        assert warning is not None
        assert warning.endswith(f"does not answer; the next one comes in {wait} s")
        held = stage.job(job_id)
        assert held.not_before is not None
        assert (held.not_before - held.updated_at).total_seconds() == pytest.approx(wait, abs=1)
        put(stage, job_id, not_before=held.updated_at)


def test_a_wish_comes_with_the_beat_and_a_crash_then_ends_the_job(stage: Stage) -> None:
    attempts, job_id = attempts_of(stage), stage.add_job(send=False)
    job = claim(stage, job_id)
    assert attempts.read_wish(job) is None
    stage.cancel(job_id)
    assert attempts.read_wish(job) == "cancel"
    assert attempts.beat(job) == "cancel"
    assert attempts.release_failed(job, BROKEN)
    assert stage.job(job_id).status is JobStatus.CANCELLED


def test_nothing_is_claimed_twice(stage: Stage) -> None:
    attempts, job_id = attempts_of(stage), stage.add_job(send=False)
    claim(stage, job_id)
    assert attempts.claim(job_id) is None
    assert attempts.claim("job_unknown") is None
    with stage.database.read() as session:
        assert not adapters.list_page(session, stage.tenant_id).items
