"""What becomes of a job that is handed over just as the one before it ends."""

from core.db import jobs
from core.states import JobStatus
from tests.service.worker.quiet_line import QuietLine
from tests.service.worker.stage import Stage
from tests.service.worker.twin import TwinEngine
from worker.base_cache import BaseCache
from worker.job_run import Workshop, run_jobs
from worker.protocol import Outcome, Run


class _Line(QuietLine):
    """Hands the next job over at the end of the first."""

    def __init__(self, following: Run) -> None:
        super().__init__()
        self.following: Run | None = following

    def next_beside(self) -> Run | None:
        if not self.ends:
            return None
        found, self.following = self.following, None
        return found


def claimed(stage: Stage, *, base_model: str, name: str) -> Run:
    job_id = stage.add_job(send=False, base_model=base_model, adapter_name=name)
    with stage.database.write() as session:
        claim = jobs.claim(session, job_id, owner="test", lease_seconds=60)
    assert claim is not None
    return Run(job_id, claim.attempt)


def test_the_next_job_is_left_for_a_company_of_its_own(stage: Stage) -> None:
    """It may be for another base: it was read, and went back to the queue for another attempt."""
    first = claimed(stage, base_model="minilm", name="first")
    following = claimed(stage, base_model="smollm2", name="following")
    engine = TwinEngine(stage.settings)
    shop = Workshop(stage.settings, stage.database, stage.store, engine, BaseCache(engine))
    line = _Line(following)
    run_jobs(shop, first, line)
    assert line.following == following
    line.following = None
    run_jobs(shop, following, line)
    found = [(ended.job_id, ended.outcome) for ended in line.ends]
    assert found == [(run.job_id, Outcome.SUCCEEDED) for run in (first, following)]
    assert stage.job(following.job_id).status is JobStatus.SUCCEEDED
