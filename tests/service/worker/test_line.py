"""A job from its message to the published adapter, through real workers over the twin."""

from core.db import datasets, draws
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
    with stage.database.read() as session:
        kept = draws.list_of(session, stage.tenant_id, adapter.id)
        dataset = datasets.get(session, stage.tenant_id, job.dataset_id)
    assert job.environment == {"twin": "1"}
    own = kept["accuracy"]
    assert (own.deciding, own.rows, draws.values_of(own)) == (True, 2, (1.0, 0.5))
    assert own.test_sha256 == dataset.splits["test"]["sha256"]
