"""Two data sets as one: rows to train on, and rows to choose the best step by.

The rows are copied and validated again as one data set, so that labels and leakage between the two
are looked at, and either of them may be deleted while jobs use both. Callable without HTTP.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.schemas.datasets import DatasetRequest, SplitRequest
from app.services import uploads
from app.services.multipart import ReceivedFile
from app.services.parts import Parts
from core.db import Session, datasets
from core.db.models import Dataset
from core.errors import BadInput, Conflict, NotFound
from core.states import DatasetStatus
from core.storage import disk_faults_told, make_scratch

_INSTEAD = "make one data set with splits by POST /datasets, and send it as the only file"


def join(parts: Parts, *, tenant_id: str, files: Mapping[str, str]) -> Dataset:
    """Put two data sets together, unless that has been done already.

    Args:
        parts: Where rows are, and whom to ask to validate them.
        tenant_id: The owner.
        files: Ids of the data sets for ``train`` and ``validation``. Errors name these as field.

    Returns:
        The data set of both, ``validating`` or further.
    """
    with parts.database.read() as session:
        rows = {
            split: _get_ready(session, tenant_id, dataset_id, split)
            for split, dataset_id in files.items()
        }
        _check_fit(rows["train"], rows["validation"])
    found = {**_filled(rows["train"]), "validation": rows["validation"].splits["train"]}
    with disk_faults_told():
        folder = make_scratch(parts.settings.data_dir, prefix="join-")
    try:
        copied = {
            split: _copy(parts, entry, folder / split) for split, entry in sorted(found.items())
        }
        upload = uploads.Upload(
            # nothing is cut: a test split is there if the first data set has one
            DatasetRequest.model_validate(
                {
                    "task": rows["train"].task,
                    "format": "jsonl",
                    "split": SplitRequest(fractions=(1.0, 0.0, 0.0)),
                }
            ),
            rows["train"].name,
            copied,
            joined_from=files,
        )
        row, _ = uploads.take_in(
            parts, tenant_id=tenant_id, upload=upload, folder=folder, at_once=False
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return row


def _get_ready(session: Session, tenant_id: str, dataset_id: str, field: str) -> Dataset:
    """The data set, once its rows are known.

    Raises:
        NotFound: There is none.
        Conflict: It is not ready.
    """
    try:
        row = datasets.get(session, tenant_id, dataset_id)
    except NotFound as error:
        raise NotFound(error.message, code=error.code, param=field) from error
    if row.status is not DatasetStatus.READY:
        raise Conflict(
            f"{dataset_id} is {row.status}; two files can be joined once both are ready",
            code="dataset_not_ready",
            param=field,
        )
    return row


def _check_fit(train: Dataset, validation: Dataset) -> None:
    """Refuse two that make no data set.

    Raises:
        BadInput: They are for two tasks, or have splits that would be lost.
    """
    if train.task != validation.task:
        raise BadInput(
            f"{validation.id} is for {validation.task}, {train.id} for {train.task}",
            code="task_mismatch",
            param="validation",
        )
    if "validation" in _filled(train):
        raise BadInput(
            f"{train.id} has validation rows of its own; leave the second file out, or {_INSTEAD}",
            param="validation",
        )
    if _filled(validation).keys() != {"train"}:
        has = ", ".join(_filled(validation))
        raise BadInput(
            f"{validation.id} is cut into {has}, and all of its rows would be for validation; "
            f"upload it to /v1/files, which does not cut, or {_INSTEAD}",
            param="validation",
        )


def _filled(row: Dataset) -> dict[str, dict[str, Any]]:
    """The splits that have rows."""
    return {split: entry for split, entry in row.splits.items() if entry["rows"]}


def _copy(parts: Parts, entry: Mapping[str, Any], path: Path) -> ReceivedFile:
    with disk_faults_told():
        stored = parts.store.fetch_to(entry["key"], path)
    return ReceivedFile(path, "joined.jsonl", stored.bytes, stored.sha256)
