"""The housekeeping task ``tunery.validate_dataset``: a large upload becomes canonical splits.

Small uploads are validated by the api before it answers; both use ``peft_engine.records``. Running
twice is harmless: the first outcome stands.
"""

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from core.db import Database, datasets, jobs
from core.db.models import Dataset
from core.errors import Unavailable
from core.queue import JobQueue
from core.settings import Settings
from core.states import DatasetStatus
from core.storage import ObjectStore, disk_faults_told, is_at_work, keep_split, make_scratch
from peft_engine.records import (
    BuildCancelled,
    DatasetReport,
    SourceFile,
    SplitSpec,
    build_dataset,
)

_log = logging.getLogger(__name__)

# Signs of life between two looks of the sweep.
_TOUCHES = 4

_INTERNAL = {
    "code": "internal_error",
    "message": "The data set could not be read for a fault of ours; it has been logged.",
    "param": "dataset_id",
}


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

        Raises:
            Unavailable: Storage or database are away; the sweep sends the message again.
        """
        row = self._read(dataset_id)
        if row is None:
            _log.info("message for %s dropped: nothing to validate", dataset_id)
            return
        every_seconds = self._settings.resend_after_seconds / _TOUCHES
        silent_seconds = 2 * every_seconds
        # A message that has waited long in the queue was sent again, and both are read at a time.
        if is_at_work(
            self._settings.data_dir, prefix=f"{dataset_id}-", silent_seconds=silent_seconds
        ):
            _log.info("message for %s dropped: it is being validated", dataset_id)
            return
        try:
            self._validate(row, every_seconds=every_seconds, silent_seconds=silent_seconds)
        except Unavailable as error:
            self._tell(row.id, error)
            raise
        for entry in row.request["files"].values():
            self._store.delete(entry["key"])

    def _validate(self, row: Dataset, *, every_seconds: float, silent_seconds: float) -> None:
        with (
            self._scratch(row.id, silent_seconds=silent_seconds) as folder,
            _SignOfLife(self._database, row.id, folder, every_seconds) as life,
        ):
            try:
                report = self._build(row, folder, life.was_deleted)
                splits = self._keep_splits(row.id, report, folder / "out")
            except BuildCancelled:
                _log.info("%s was deleted while it was validated", row.id)
            except Unavailable:
                raise
            except Exception:  # noqa: BLE001 the edge of a task: else it would be sent for ever
                _log.exception("%s could not be validated", row.id)
                self._finish(row, error=_INTERNAL)
            else:
                error = None if report.status == "ready" else _first_problem(report)
                self._finish(
                    row,
                    error=error,
                    task=report.task,
                    format=report.format,
                    rows=report.rows,
                    splits=splits,
                    report=report.model_dump(mode="json"),
                )

    def _tell(self, dataset_id: str, error: Unavailable) -> None:
        # the scratch folder is gone: on a full disk the database has room again
        with suppress(Unavailable), self._database.write() as session:
            datasets.touch(session, dataset_id, reason=f"to be read again: {error.message}")

    def _read(self, dataset_id: str) -> Dataset | None:
        with self._database.read() as session:
            row = datasets.get_for_worker(session, dataset_id)
        if row is None or row.deleted_at is not None:
            return None
        return row if row.status is DatasetStatus.VALIDATING else None

    @contextmanager
    def _scratch(self, dataset_id: str, *, silent_seconds: float) -> Iterator[Path]:
        # What a killed validation of the same data set left goes; a living one may be beside this.
        folder = make_scratch(
            self._settings.data_dir, prefix=f"{dataset_id}-", silent_seconds=silent_seconds
        )
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _build(self, row: Dataset, folder: Path, was_deleted: Callable[[], bool]) -> DatasetReport:
        request = row.request
        files: dict[str, Path | SourceFile] = {}
        for split, entry in request["files"].items():
            path = folder / split
            self._store.fetch_to(entry["key"], path)
            files[split] = SourceFile(path=path, filename=entry.get("filename"))
        # A full disk is no fault of the rows: they are read again when there is room.
        with disk_faults_told():
            return build_dataset(
                files,
                out_dir=folder / "out",
                task=request.get("task"),
                format=request.get("format"),
                mapping=request.get("mapping"),
                split=SplitSpec.model_validate(request.get("split") or {}),
                cancelled=was_deleted,
            )

    def _keep_splits(
        self, dataset_id: str, report: DatasetReport, folder: Path
    ) -> dict[str, dict[str, Any]]:
        splits: dict[str, dict[str, Any]] = {}
        if report.status != "ready":
            return splits
        for name, split in report.splits.items():
            splits[name] = keep_split(
                self._store, folder / split.file, dataset_id=dataset_id, split=name, rows=split.rows
            )
        return splits

    def _finish(self, row: Dataset, *, error: dict[str, Any] | None, **values: Any) -> None:
        status = DatasetStatus.READY if error is None else DatasetStatus.INVALID
        with self._database.write() as session:
            first = datasets.finish_validation(
                session, row.id, status=status, error=error, reason=None, **values
            )
            job_ids = jobs.release_waiting(session, row.id, error=error) if first else []
            now = datasets.get_for_worker(session, row.id)
        for job_id in job_ids:
            self._queue.send_training(job_id)
        self._queue.send_deliveries(row.id)  # of jobs that failed for it, or for leakage
        if now is None or now.deleted_at is not None:
            # whoever deleted it did not know of these; those of another validation have its keys
            for split in values.get("splits", {}).values():
                self._store.delete(split["key"])


class _SignOfLife:
    """Keeps the sweep away while a validation runs, and tells it when its row was deleted."""

    def __init__(
        self, database: Database, dataset_id: str, folder: Path, every_seconds: float
    ) -> None:
        self._database = database
        self._dataset_id = dataset_id
        self._folder = folder
        self._every_seconds = every_seconds
        self._over = threading.Event()
        self._deleted = False
        self._thread = threading.Thread(target=self._touch, name="validation", daemon=True)

    def __enter__(self) -> "_SignOfLife":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def was_deleted(self) -> bool:
        return self._deleted

    def _touch(self) -> None:
        while not self._over.wait(self._every_seconds):
            with suppress(FileNotFoundError):  # it has ended meanwhile
                os.utime(self._folder)
            try:
                with self._database.write() as session:
                    datasets.touch(session, self._dataset_id)
                    row = datasets.get_for_worker(session, self._dataset_id)
            except Unavailable as error:
                _log.warning("validation of %s not noted: %s", self._dataset_id, error)
            else:
                self._deleted = row is None or row.deleted_at is not None


def _first_problem(report: DatasetReport) -> dict[str, Any]:
    first = report.problems[0]
    place = f"line {first.line}: " if first.line else ""
    more = f" ({report.problems_total} problems in all)" if report.problems_total > 1 else ""
    return {
        "code": "dataset_invalid",
        "message": f"{place}{first.message}{more}",
        "param": "dataset_id",
    }
