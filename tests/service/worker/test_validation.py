"""Large uploads: a housekeeping worker validates them, and jobs that waited for them go on."""

import json

import pytest

from core.db import datasets, jobs
from core.db.models import Dataset
from core.queue import VALIDATE_TASK
from core.states import DatasetStatus, JobStatus
from core.storage import upload_key
from tests.service.worker.conftest import BOTH
from tests.service.worker.stage import Stage, wait_until

GOOD = "".join(json.dumps({"text": f"text {i}", "label": "ab"[i % 2]}) + "\n" for i in range(60))


def upload(stage: Stage, content: str) -> str:
    """Store an upload as the api does for a large one."""
    dataset_id = datasets.new_dataset_id()
    key = upload_key(dataset_id, "all")
    stage.store.put_bytes(key, content.encode())
    with stage.database.write() as session:
        datasets.create(
            session,
            tenant_id=stage.tenant_id,
            name="large",
            status=DatasetStatus.VALIDATING,
            id=dataset_id,
            request={
                "task": None,
                "format": None,
                "mapping": None,
                "split": {"fractions": [0.8, 0.1, 0.1], "seed": 0, "column": None},
                "files": {"all": {"key": key, "filename": "large.jsonl"}},
            },
        )
    return dataset_id


def add_waiting_job(stage: Stage, dataset_id: str) -> str:
    with stage.database.write() as session:
        job = jobs.create(
            session,
            tenant_id=stage.tenant_id,
            dataset_id=dataset_id,
            base_model="minilm",
            spec=stage.spec(steps=2, dataset_id=dataset_id).model_dump(mode="json"),
            max_attempts=3,
            adapter_name="large",
            status=JobStatus.VALIDATING_FILES,
        )
    return job.id


def wait_validated(stage: Stage, dataset_id: str) -> Dataset:
    def read() -> Dataset | None:
        with stage.database.read() as session:
            row = datasets.get(session, stage.tenant_id, dataset_id)
        return row if row.status is not DatasetStatus.VALIDATING else None

    row = wait_until(read, what=f"{dataset_id} validated")
    assert isinstance(row, Dataset)
    return row


@pytest.mark.parametrize("database_url", BOTH, indirect=True)
def test_large_uploads_become_splits_and_their_jobs_go_on(stage: Stage) -> None:
    good, bad = upload(stage, GOOD), upload(stage, GOOD + '{"text": "no label"}\n{"label": 7\n')
    waiting, hopeless = add_waiting_job(stage, good), add_waiting_job(stage, bad)
    stage.start_worker("housekeeping")
    stage.start_worker()
    for dataset_id in (good, bad):
        assert stage.queue.send_housekeeping(VALIDATE_TASK, dataset_id)

    row = wait_validated(stage, good)
    assert (row.status, row.task) == (DatasetStatus.READY, "text-classification")
    assert (row.rows, row.format) == (60, "jsonl")
    assert sum(split["rows"] for split in row.splits.values()) == 60
    assert stage.wait_status(waiting, JobStatus.SUCCEEDED).error is None

    row = wait_validated(stage, bad)
    assert row.status is DatasetStatus.INVALID
    assert row.error is not None
    assert row.error["code"] == "dataset_invalid"
    assert "line 61" in row.error["message"]
    assert row.report is not None
    assert row.report["problems_total"] == 2
    assert stage.wait_status(hopeless, JobStatus.FAILED).error == row.error

    wait_until(lambda: not list(stage.store.list("uploads")), what="the raw bytes are deleted")
    assert not list((stage.folder / "scratch").iterdir())


def test_a_validation_whose_message_was_lost_is_found_again(stage: Stage) -> None:
    dataset_id = upload(stage, GOOD)
    stage.start_worker("housekeeping")
    stage.start_beat()
    assert wait_validated(stage, dataset_id).status is DatasetStatus.READY
