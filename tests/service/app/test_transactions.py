"""Services without HTTP: one transaction, and messages only after it is committed."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import pytest

from app.dependencies import _write
from app.schemas.datasets import DatasetCreate
from app.services import jobs as service
from app.services import uploads
from app.services.measures import Measures
from app.services.parts import Parts, Unit
from app.services.replicas import Replicas
from core.db import Database, Session, datasets, jobs, tenants
from core.db.models import Job
from core.errors import Conflict
from core.queue import JobQueue
from core.settings import Settings, load_settings
from core.states import DatasetStatus
from core.storage import open_store
from peft_engine.configs import JobSpec
from peft_engine.records import DatasetReport
from tests.service.app.rows import records


class WitnessQueue(JobQueue):
    """A queue that looks, at the moment of sending, whether others can see the job."""

    def __init__(self, settings: Settings, database: Database) -> None:
        super().__init__(settings)
        self._database = database
        self.seen: list[Job | None] = []

    def send_training(self, job_id: str, *, priority: int = 0) -> bool:
        with self._database.read() as session:
            self.seen.append(jobs.get_for_worker(session, job_id))
        return True


@pytest.fixture
def queue(database: Database, tmp_path: Path) -> WitnessQueue:
    return WitnessQueue(load_settings(data_dir=tmp_path), database)


@pytest.fixture
def parts(database: Database, queue: WitnessQueue, tmp_path: Path) -> Parts:
    settings = load_settings(data_dir=tmp_path)
    return Parts(
        settings=settings,
        database=database,
        store=open_store(settings),
        queue=queue,
        measures=Measures(),
        inference=Replicas(settings.inference_url, list),
    )


@pytest.fixture
def tenant_id(database: Database) -> str:
    with database.write() as session:
        return tenants.ensure_tenant(session, name="default").id


@pytest.fixture
def spec(database: Database, tenant_id: str) -> JobSpec:
    with database.write() as session:
        row = datasets.create(
            session,
            tenant_id=tenant_id,
            name="rows",
            status=DatasetStatus.READY,
            task="text-classification",
        )
    return JobSpec(dataset_id=row.id, base_model="minilm")


def create(unit: Unit, parts: Parts, tenant_id: str, spec: JobSpec) -> str:
    job, _ = service.create(unit, parts=parts, tenant_id=tenant_id, spec=spec, idempotency_key=None)
    return job.id


def test_the_message_is_sent_after_the_commit(
    parts: Parts, queue: WitnessQueue, tenant_id: str, spec: JobSpec
) -> None:
    transaction = _write(parts)
    job_id = create(next(transaction), parts, tenant_id, spec)
    assert queue.seen == []
    assert next(transaction, None) is None
    assert [job.id if job else None for job in queue.seen] == [job_id]


def test_nothing_is_sent_when_the_transaction_fails(
    parts: Parts, queue: WitnessQueue, tenant_id: str, spec: JobSpec
) -> None:
    transaction = _write(parts)
    job_id = create(next(transaction), parts, tenant_id, spec)
    with pytest.raises(LookupError):
        transaction.throw(LookupError("after the row was made"))
    assert queue.seen == []
    with parts.database.read() as session:
        assert jobs.get_for_worker(session, job_id) is None


def test_an_upload_without_http(parts: Parts, tenant_id: str, tmp_path: Path) -> None:
    body = DatasetCreate(name="rows", records=records())
    folder = tmp_path / "in"
    folder.mkdir()
    upload = uploads.write_records(body, folder=folder, idempotency_key=None)
    row, status = uploads.take_in(
        parts, tenant_id=tenant_id, upload=upload, folder=tmp_path / "out"
    )
    assert (status, row.status, row.rows) == (201, DatasetStatus.READY, 40)
    report = DatasetReport.model_validate(row.report)
    assert report.rows == 40
    again, status = uploads.take_in(
        parts, tenant_id=tenant_id, upload=upload, folder=tmp_path / "again"
    )
    assert (status, again.id) == (200, row.id)
    renamed = replace(upload, name="other")
    assert renamed.digest != upload.digest


def meanwhile(act: Callable[[Session], object], database: Database) -> "Future[object]":
    """Begin another transaction; it has a while to end before ours if nothing stops it."""

    def work() -> object:
        with database.write() as session:
            return act(session)

    pool = ThreadPoolExecutor(1)
    acting = pool.submit(work)
    pool.shutdown(wait=False)
    wait([acting], timeout=1)
    return acting


def test_a_validation_that_ends_while_a_job_is_made_finds_the_job(
    parts: Parts, tenant_id: str, database: Database
) -> None:
    with database.write() as session:
        row = datasets.create(
            session, tenant_id=tenant_id, name="rows", status=DatasetStatus.VALIDATING
        )

    def end(session: Session) -> list[str]:
        assert datasets.finish_validation(session, row.id, status=DatasetStatus.READY)
        return jobs.release_waiting(session, row.id)

    with database.write() as session:
        spec = JobSpec(dataset_id=row.id, base_model="minilm")
        job_id = create(Unit(session), parts, tenant_id, spec)
        ended = meanwhile(end, database)
    assert ended.result() == [job_id]
    with database.read() as session:
        assert jobs.get(session, tenant_id, job_id).status == "queued"


def test_a_data_set_is_not_deleted_while_a_job_is_made_of_it(
    parts: Parts, tenant_id: str, spec: JobSpec, database: Database
) -> None:
    def delete(session: Session) -> object:
        return datasets.mark_deleted(session, tenant_id, spec.dataset_id)

    with database.write() as session:
        create(Unit(session), parts, tenant_id, spec)
        deleted = meanwhile(delete, database)
    with pytest.raises(Conflict, match="needs data set"):
        deleted.result()
