"""Rows that most tests of the database begin with."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from core.db import Database, datasets, events, jobs, tenants
from core.db.models import Job
from core.ids import new_id
from core.states import DatasetStatus, JobStatus

LEASE = 30.0
EXPIRED = -1.0


@dataclass(frozen=True)
class World:
    """A tenant with a data set that is ready."""

    database: Database
    tenant_id: str
    dataset_id: str

    def job(self, **values: Any) -> Job:
        """Make a job, queued unless told otherwise."""
        with self.database.write() as session:
            return jobs.create(
                session,
                **{
                    "tenant_id": self.tenant_id,
                    "dataset_id": self.dataset_id,
                    "base_model": "minilm",
                    "spec": {"training": {"seed": 0}},
                    "max_attempts": 3,
                }
                | values,
            )

    def get(self, job_id: str) -> Job:
        """Read a job as it is now."""
        with self.database.read() as session:
            return jobs.get(session, self.tenant_id, job_id)

    def claim(self, job_id: str, lease_seconds: float = LEASE) -> int | None:
        """Claim a job and give the attempt."""
        with self.database.write() as session:
            claim = jobs.claim(session, job_id, owner="worker", lease_seconds=lease_seconds)
        return None if claim is None else claim.attempt

    def beat(self, job_id: str, attempt: int, lease_seconds: float = LEASE) -> jobs.Beat | None:
        """Send a heartbeat."""
        with self.database.write() as session:
            return jobs.beat(session, job_id, attempt, lease_seconds=lease_seconds)

    def finish(self, job_id: str, attempt: int, status: JobStatus, **values: Any) -> bool:
        """End an attempt."""
        with self.database.write() as session:
            return jobs.finish(session, job_id, attempt, status, **values)

    def cancel(self, job_id: str) -> Job:
        """Wish a job away."""
        with self.database.write() as session:
            return jobs.request_cancel(session, self.tenant_id, job_id)

    def pause(self, job_id: str) -> Job:
        """Wish a job to wait."""
        with self.database.write() as session:
            return jobs.request_pause(session, self.tenant_id, job_id)

    def sweep(self, resend_after_seconds: float = 20.0) -> list[str]:
        """Take back what was lost."""
        with self.database.write() as session:
            return list(jobs.sweep(session, resend_after_seconds=resend_after_seconds))

    def story(self, job_id: str) -> list[str]:
        """Give the statuses that the job's events tell, in order."""
        with self.database.read() as session:
            page = events.page(session, self.tenant_id, job_id, limit=1000)
        return [row.data["status"] for row in page.items if row.event == "status"]

    def ends(self, job_id: str) -> list[str]:
        """Give the names of the events that end the job's story."""
        with self.database.read() as session:
            page = events.page(session, self.tenant_id, job_id, limit=1000)
        return [row.event for row in page.items if row.event in {"complete", "error"}]

    def put(self, job_id: str, **values: Any) -> None:
        """Bring a job into a state that would take long to reach."""
        with self.database.write() as session:
            session.execute(sa.update(Job).where(Job.id == job_id).values(**values))


def make_world(database: Database) -> World:
    """Make a tenant with a data set that is ready."""
    with database.write() as session:
        tenant = tenants.create_tenant(session, name=new_id("t"))
        dataset = datasets.create(
            session, tenant_id=tenant.id, name="d", status=DatasetStatus.READY
        )
    return World(database, tenant.id, dataset.id)


def at_once(work: Any, arguments: list[Any]) -> list[Any]:
    """Call a function from one thread per argument, all at the same moment."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    barrier = Barrier(len(arguments))

    def start(argument: Any) -> Any:
        barrier.wait(20)
        return work(argument)

    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(start, arguments))
