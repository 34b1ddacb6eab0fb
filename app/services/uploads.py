"""Take the bytes of a data set in: check them, store them, make the row.

Small uploads are validated before the answer, large ones by a housekeeping worker after it.
Callable without HTTP.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.schemas.datasets import DatasetCreate, DatasetRequest, SplitRequest
from app.services.form_fields import read_fields, require_file
from app.services.multipart import Form, ReceivedFile, display_name
from app.services.parts import Parts
from app.services.stored_rows import Beside, write_row
from core.db import datasets
from core.db.idempotency import digest_request, find_by_key
from core.db.models import Dataset
from core.errors import BadInput
from core.queue import VALIDATE_TASK
from core.states import DatasetStatus
from core.storage import disk_faults_told, file_pieces, keep_split, upload_key
from peft_engine.records import DatasetReport, SourceFile, SplitSpec, build_dataset

FILE_FIELDS: Mapping[str, str] = {
    "file": "train",
    "validation_file": "validation",
    "test_file": "test",
}
"""Field of the form and the split that it fills; the main file alone is cut into all splits."""


@dataclass(frozen=True)
class Upload:
    """A whole upload on local disk.

    Attributes:
        request: What was asked of it.
        name: Name of the data set.
        files: File by split: ``all``, or ``train`` with ``validation`` or ``test`` beside it.
        idempotency_key: The caller's key, if any.
        joined_from: By split the id of the data set that it came from; empty for what was sent.
    """

    request: DatasetRequest
    name: str
    files: Mapping[str, ReceivedFile]
    idempotency_key: str | None = None
    joined_from: Mapping[str, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Length of all files together."""
        return sum(file.bytes for file in self.files.values())

    @property
    def digest(self) -> str:
        """Same bytes, same wishes: same digest."""
        return digest_request(
            {
                "name": self.name,
                "files": {split: file.sha256 for split, file in self.files.items()},
                "request": self.wishes,
            }
        )

    @property
    def wishes(self) -> dict[str, Any]:
        """What was asked, as the row keeps it."""
        asked = self.request.model_dump(mode="json", exclude={"name"})
        return asked | ({"joined_from": dict(self.joined_from)} if self.joined_from else {})


def read_form(form: Form, *, idempotency_key: str | None) -> Upload:
    """Read what a form asks for; what it says wrongly or not at all is told as ``BadInput``.

    Args:
        form: The whole form.
        idempotency_key: The caller's key, if any.

    Returns:
        The upload.
    """
    request = read_fields(DatasetRequest, form, json_fields={"mapping", "split"})
    require_file(form, "file", what="rows")
    files = {FILE_FIELDS[field]: file for field, file in form.files.items()}
    return _assemble(request, files, idempotency_key)


def write_records(body: DatasetCreate, *, folder: Path, idempotency_key: str | None) -> Upload:
    """Write records of a JSON body as files, so that they are read like every other upload.

    Args:
        body: The body.
        folder: Where to write; the caller removes it.
        idempotency_key: The caller's key, if any.

    Returns:
        The upload.
    """
    given = {
        "train": body.records,
        "validation": body.validation_records,
        "test": body.test_records,
    }
    with disk_faults_told():
        files = {
            split: _write_jsonl(folder / split, records)
            for split, records in given.items()
            if records is not None
        }
    request = DatasetRequest.model_validate(
        body.model_dump(exclude={"records", "validation_records", "test_records"})
    )
    return _assemble(request, files, idempotency_key)


def whole_file(file: ReceivedFile, *, idempotency_key: str | None) -> Upload:
    """Take every row of a file for training, but those whose ``split`` column says otherwise.

    Args:
        file: The file.
        idempotency_key: The caller's key, if any.

    Returns:
        The upload.
    """
    request = DatasetRequest(split=SplitRequest(fractions=(1.0, 0.0, 0.0)))
    return _assemble(request, {"train": file}, idempotency_key)


def take_in(
    parts: Parts,
    *,
    tenant_id: str,
    upload: Upload,
    folder: Path,
    at_once: bool = True,
    beside: Beside | None = None,
) -> tuple[Dataset, int]:
    """Take an upload in, whatever its size.

    Args:
        parts: Where to store and whom to ask.
        tenant_id: The owner.
        upload: What was sent.
        folder: Where splits may be written; the caller removes it.
        at_once: Whether a small upload is checked now, and refused if it cannot be used; else a
            worker checks it, and what cannot be used stays to be looked at.
        beside: What is written with the row.

    Returns:
        The row, and the HTTP status that says what happened: 201 made, 202 being validated, 200
        known already.
    """
    known = _find_known(parts, tenant_id, upload, beside)
    if known is not None:
        return known, 202 if known.status == DatasetStatus.VALIDATING else 200
    if not at_once or upload.bytes > parts.settings.background_validation_bytes:
        row, _ = store_for_later(parts, tenant_id=tenant_id, upload=upload, beside=beside)
        return row, 202
    report = validate(upload, folder=folder)
    row, is_new = store_ready(
        parts, tenant_id=tenant_id, upload=upload, report=report, folder=folder, beside=beside
    )
    return row, 201 if is_new else 200


def _find_known(
    parts: Parts, tenant_id: str, upload: Upload, beside: Beside | None
) -> Dataset | None:
    """Find what the same bytes with the same wishes have made, before they are read again."""
    with parts.database.read() if beside is None else parts.database.write() as session:
        if upload.idempotency_key is None:
            known = datasets.find_same(session, tenant_id, upload.digest)
        else:
            known = find_by_key(
                session,
                Dataset,
                tenant_id=tenant_id,
                key=upload.idempotency_key,
                request_digest=upload.digest,
            )
        if known is not None and beside is not None:
            beside(session, known.id)
        return known


def validate(upload: Upload, *, folder: Path) -> DatasetReport:
    """Check every row.

    Args:
        upload: What was sent.
        folder: Where the canonical splits are written.

    Returns:
        The report of a data set that can be used.

    Raises:
        BadInput: It cannot; ``details`` lists every problem.
    """
    asked = upload.request
    with disk_faults_told():
        report = build_dataset(
            {
                split: SourceFile(file.path, file.filename or None)
                for split, file in upload.files.items()
            },
            out_dir=folder,
            task=asked.task,
            format=asked.format,
            mapping=asked.mapping,
            split=SplitSpec.model_validate(asked.split.model_dump()),
        )
    if report.status == "ready":
        return report
    problems = [_shown(problem.model_dump(mode="json")) for problem in report.problems]
    first = problems[0] if problems else {"message": "no rows can be used", "file": "file"}
    place = f"line {first['line']}: " if first.get("line") else ""
    total = report.problems_total
    more = f" ({total} problems in all, {len(problems)} listed)" if total > 1 else ""
    raise BadInput(
        f"{place}{first['message']}{more}",
        code="dataset_invalid",
        param=first["file"],
        details=problems,
    )


def _shown(problem: dict[str, Any]) -> dict[str, Any]:
    # the sender knows the parts of the form, not our splits
    fields = {split: field for field, split in FILE_FIELDS.items()}
    return {**problem, "file": fields.get(problem.get("file", ""), "file")}


def store_ready(
    parts: Parts,
    *,
    tenant_id: str,
    upload: Upload,
    report: DatasetReport,
    folder: Path,
    beside: Beside | None = None,
) -> tuple[Dataset, bool]:
    """Store a checked data set: first the bytes, then the row.

    Args:
        parts: Where to store.
        tenant_id: The owner.
        upload: What was sent.
        report: Of ``validate``.
        folder: Where ``validate`` wrote the splits.
        beside: What is written with the row.

    Returns:
        The row, and whether it is new.
    """
    dataset_id = datasets.new_dataset_id()
    splits = {
        split: keep_split(
            parts.store, folder / found.file, dataset_id=dataset_id, split=split, rows=found.rows
        )
        for split, found in report.splits.items()
    }
    values = {
        **_row_values(dataset_id, tenant_id, upload),
        "status": DatasetStatus.READY,
        "task": report.task,
        "format": report.format,
        "rows": report.rows,
        "splits": splits,
        "report": report.model_dump(mode="json"),
    }
    keys = [stored_split["key"] for stored_split in splits.values()]
    return write_row(parts, keys, lambda session: datasets.create_once(session, **values), beside)


def store_for_later(
    parts: Parts, *, tenant_id: str, upload: Upload, beside: Beside | None = None
) -> tuple[Dataset, bool]:
    """Store the bytes of a large upload and ask a worker to check them.

    Args:
        parts: Where to store and whom to ask.
        tenant_id: The owner.
        upload: What was sent.
        beside: What is written with the row.

    Returns:
        The row in ``validating``, and whether it is new.
    """
    dataset_id = datasets.new_dataset_id()
    files: dict[str, dict[str, Any]] = {}
    for split, file in upload.files.items():
        key = upload_key(dataset_id, split)
        parts.store.put_stream(key, file_pieces(file.path))
        files[split] = {
            "key": key,
            "filename": file.filename,
            "bytes": file.bytes,
            "sha256": file.sha256,
        }
    values = _row_values(dataset_id, tenant_id, upload)
    values |= {
        "request": {**values["request"], "files": files},
        "status": DatasetStatus.VALIDATING,
        "task": upload.request.task,
        "format": upload.request.format,
    }
    keys = [str(stored["key"]) for stored in files.values()]
    row, is_new = write_row(
        parts, keys, lambda session: datasets.create_once(session, **values), beside
    )
    if is_new:
        parts.queue.send_housekeeping(VALIDATE_TASK, row.id)
    return row, is_new


def _row_values(dataset_id: str, tenant_id: str, upload: Upload) -> dict[str, Any]:
    main = upload.files.get("all") or upload.files["train"]
    return {
        "id": dataset_id,
        "tenant_id": tenant_id,
        "name": upload.name,
        "filename": main.filename or None,
        "bytes": upload.bytes,
        "sha256": main.sha256,
        "request": upload.wishes,
        "request_digest": upload.digest,
        "idempotency_key": upload.idempotency_key,
    }


def _assemble(
    request: DatasetRequest, files: dict[str, ReceivedFile], idempotency_key: str | None
) -> Upload:
    if abs(sum(request.split.fractions) - 1) > 1e-6:
        raise BadInput(
            f"split.fractions add up to {sum(request.split.fractions):g}, not to 1",
            param="split.fractions",
        )
    if files.keys() == {"train"}:
        files = {"all": files["train"]}
    main = files.get("all") or files["train"]
    return Upload(request, request.name or name_from(main.filename), files, idempotency_key)


def name_from(filename: str) -> str:
    """Make a name out of a file name.

    Args:
        filename: Any text.

    Returns:
        A name that the rules allow; ``dataset`` when nothing is left.
    """
    stem = re.split(r"\.(?:jsonl|json|csv|tsv|parquet|gz)\b", display_name(filename).lower())[0]
    name = re.sub(r"[^a-z0-9._-]+", "-", stem).strip("-._")
    return name[:64].rstrip("-._") or "dataset"


def _write_jsonl(path: Path, records: Sequence[Mapping[str, Any]]) -> ReceivedFile:
    digest, length = hashlib.sha256(), 0
    with path.open("wb") as file:
        for record in records:
            # escapes, since half a surrogate pair cannot be written otherwise; the reader reports
            # it with its line
            line = json.dumps(record).encode() + b"\n"
            digest.update(line)
            length += len(line)
            file.write(line)
    return ReceivedFile(path, "records.jsonl", length, digest.hexdigest())
