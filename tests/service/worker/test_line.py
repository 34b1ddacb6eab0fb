"""A job from its message to the published adapter, through real workers over the twin."""

from core.states import JobStatus
from tests.service.worker.stage import Stage


def test_a_pool_that_cannot_drain_is_refused(stage: Stage) -> None:
    worker = stage.start_worker(pool="prefork")
    assert worker.process.wait(30) != 0
    assert "-P threads" in stage.logs()


def test_a_job_is_trained_and_published(stage: Stage) -> None:
    stage.start_worker()
    job_id = stage.add_job(steps=10)
    job = stage.wait_end(job_id)
    assert job.status is JobStatus.SUCCEEDED
    assert job.attempt == 1
    assert stage.digest(job_id).startswith("sha256:")
    (adapter,) = stage.adapters()
    assert (adapter.name, adapter.version) == ("letters", 1)
