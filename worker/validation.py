"""The housekeeping task ``tunery.validate_dataset``: a large upload becomes canonical splits.

Small uploads are validated by the api before it answers; both use ``peft_engine.records``. Running
twice is harmless: the first outcome stands.
"""

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.db import Database, datasets, jobs
from core.db.models import Dataset
from core.queue import JobQueue
from core.settings import Settings
from core.states import DatasetStatus
from core.storage import ObjectStore
from peft_engine.records import (
    BuildCancelled,
    DatasetReport,
    SourceFile,
    SplitSpec,
    build_dataset,
)

_log = logging.getLogger(__name__)

# A sign of life for the sweep, well within ``resend_after_seconds``.
_TOUCH_SECONDS = 5.0
_CHUNK_BYTES = 1 << 20


class DatasetValidator:
    """Validates data sets named by messages."""

    def __init__(
        self, settings: Settings, database: Database, store: ObjectStore, queue: JobQueue
    ) -> None:
        """Bind to the parts that it needs."""
        self._settings = settings
        self._database = database
        self._store = store
        self._queue = queue

    def validate(self, dataset_id: str) -> None:
        """Body of the task.

        Args:
            dataset_id: From the message.
        """
        row = self._read(dataset_id)
        if row is None:
            _log.info("message for %s dropped: nothing to validate", dataset_id)
            return
        scratch = self._settings.data_dir / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{dataset_id}-", dir=scratch))
        try:
            report = self._build(row, folder)
            splits = self._keep_splits(row.id, report, folder / "out")
            self._finish(row, report, splits)
        except BuildCancelled:
            _log.info("%s was deleted while it was validated", dataset_id)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        for entry in row.request["files"].values():
            self._store.delete(entry["key"])

    def _read(self, dataset_id: str) -> Dataset | None:
        with self._database.read() as session:
            row = datasets.get_for_worker(session, dataset_id)
        if row is None or row.deleted_at is not None:
            return None
        return row if row.status is DatasetStatus.VALIDATING else None

    def _build(self, row: Dataset, folder: Path) -> DatasetReport:
        request = row.request
        files: dict[str, Path | SourceFile] = {}
        for split, entry in request["files"].items():
            path = folder / split
            self._store.fetch_to(entry["key"], path)
            files[split] = SourceFile(path=path, filename=entry.get("filename"))
        return build_dataset(
            files,
            out_dir=folder / "out",
            task=request.get("task"),
            format=request.get("format"),
            mapping=request.get("mapping"),
            split=SplitSpec.model_validate(request.get("split") or {}),
            cancelled=_SignOfLife(self._database, row.id),
        )

    def _keep_splits(
        self, dataset_id: str, report: DatasetReport, folder: Path
    ) -> dict[str, dict[str, Any]]:
        splits: dict[str, dict[str, Any]] = {}
        if report.status != "ready":
            return splits
        for name, split in report.splits.items():
            key = f"datasets/{dataset_id}/{name}.jsonl"
            self._store.put_stream(key, _chunks(folder / split.file))
            splits[name] = {"key": key, "rows": split.rows, "sha256": split.sha256}
        return splits

    def _finish(
        self,
        row: Dataset,
        report: DatasetReport,
        splits: dict[str, dict[str, Any]],
    ) -> None:
        ready = report.status == "ready"
        error = None if ready else _first_problem(report)
        with self._database.write() as session:
            first = datasets.finish_validation(
                session,
                row.id,
                status=DatasetStatus.READY if ready else DatasetStatus.INVALID,
                task=report.task,
                format=report.format,
                bytes=report.bytes,
                rows=report.rows,
                sha256=report.sha256,
                splits=splits,
                report=report.model_dump(mode="json"),
                error=error,
            )
            job_ids = jobs.release_waiting(session, row.id, error=error) if first else []
        for job_id in job_ids:
            self._queue.send_training(job_id)


class _SignOfLife:
    """Asked by the reader every thousand rows: keeps the sweep away, and ends for a deleted row."""

    def __init__(self, database: Database, dataset_id: str) -> None:
        self._database = database
        self._dataset_id = dataset_id
        self._touched_at = time.monotonic()

    def __call__(self) -> bool:
        if time.monotonic() - self._touched_at < _TOUCH_SECONDS:
            return False
        self._touched_at = time.monotonic()
        with self._database.write() as session:
            datasets.touch(session, self._dataset_id)
            row = datasets.get_for_worker(session, self._dataset_id)
        return row is None or row.deleted_at is not None


def _first_problem(report: DatasetReport) -> dict[str, Any]:
    problem = report.problems[0]
    return {"code": problem.code, "message": problem.message, "param": "dataset_id"}


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
