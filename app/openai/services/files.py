"""Data sets, in the words of OpenAI's files; those of batches stand in ``batch_files``."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from app.openai.schemas.files import BATCH, FINE_TUNE, PURPOSES, FileObject
from app.openai.services import batch_files
from app.openai.services.moments import unix_seconds
from app.schemas.shared import Page
from app.services import uploads
from app.services.form_fields import require_file
from app.services.multipart import Form, ReceivedFile
from app.services.parts import Parts
from app.services.reports import as_told
from app.services.stored_rows import Beside
from core.db import Session, datasets, files
from core.db.models import Dataset, File
from core.db.pages import Page as Rows
from core.errors import BadInput, Conflict
from core.states import DatasetStatus
from core.storage import ObjectStore

_STATUSES = {
    DatasetStatus.VALIDATING: "uploaded",
    DatasetStatus.READY: "processed",
    DatasetStatus.INVALID: "error",
}

_ORDER = ("train", "validation", "test")


@dataclass(frozen=True)
class Given:
    """Bytes that shall become a file.

    Attributes:
        purpose: What it is for; one that ``check_purpose`` takes.
        file: The whole of it, on local disk.
    """

    purpose: str
    file: ReceivedFile


def read_form(form: Form) -> Given:
    """Read what a form asks for.

    Args:
        form: The whole form.

    Returns:
        What it brought.

    Raises:
        BadInput: A field is missing, unknown, or asks for what is not offered.
    """
    file = require_file(form, "file", what="rows")
    for name in form.fields.keys() - {"purpose"}:
        if name.startswith("expires_after"):
            raise BadInput(
                "expires_after is not offered here: a file stays until it is deleted",
                code="unsupported",
                param="expires_after",
            )
        raise BadInput(
            f"the form has a field {name[:64]!r}, which is not known here; a data set with "
            "splits, a task or a mapping of columns is made by POST /datasets, and its id is taken "
            "as training_file",
            code="unknown_field",
            param=name[:64],
        )
    purpose = form.fields.get("purpose")
    if purpose is None:
        raise BadInput(
            f"send purpose: {' or '.join(PURPOSES)}", code="missing_field", param="purpose"
        )
    check_purpose(purpose)
    return Given(purpose, file)


def check_purpose(purpose: str) -> None:
    """Refuse a purpose that files have not here, before their bytes are taken in.

    Args:
        purpose: As it was sent.

    Raises:
        BadInput: It is not offered.
    """
    if purpose not in PURPOSES:
        raise BadInput(
            f"the purpose {purpose[:64]!r} is not offered here; files are for "
            f"{' or '.join(PURPOSES)}",
            code="unsupported",
            param="purpose",
        )


def make_file(
    parts: Parts,
    *,
    tenant_id: str,
    given: Given,
    folder: Path,
    idempotency_key: str | None = None,
    beside: Beside | None = None,
) -> FileObject:
    """Make a file, whether its bytes came in one piece or in parts; the purpose decides what of.

    Args:
        parts: Where to store and whom to ask.
        tenant_id: The owner.
        given: What was sent.
        folder: Where more may be written; the caller removes it.
        idempotency_key: The caller's key, if any.
        beside: What is written with the file's row.

    Returns:
        The file: to train on a data set, all of whose rows are for training. Equal bytes under an
        equal name give the same one.
    """
    if given.purpose == BATCH:
        kept = batch_files.take_in(
            parts,
            tenant_id=tenant_id,
            file=given.file,
            idempotency_key=idempotency_key,
            beside=beside,
        )
        return as_file(kept)
    row, _ = uploads.take_in(
        parts,
        tenant_id=tenant_id,
        upload=uploads.whole_file(given.file, idempotency_key=idempotency_key),
        folder=folder,
        at_once=False,
        beside=beside,
    )
    return as_file(row)


def get_file(session: Session, tenant_id: str, file_id: str) -> FileObject:
    """Show a file.

    Args:
        session: An open session.
        tenant_id: Who asks.
        file_id: Which one.

    Returns:
        The file; ``NotFound`` when there is none.
    """
    if batch_files.is_one(file_id):
        return as_file(files.get(session, tenant_id, file_id))
    return as_file(datasets.get(session, tenant_id, file_id))


def as_file(row: Dataset | File) -> FileObject:
    """Shape a data set, or a file of a batch, as a file.

    Args:
        row: Either.

    Returns:
        What is shown of it.
    """
    if isinstance(row, File):
        return batch_files.as_file(row)
    return FileObject.model_validate(
        {
            "id": row.id,
            "bytes": row.bytes or 0,
            "created_at": unix_seconds(row.created_at),
            "filename": row.filename or f"{row.name}.jsonl",
            "purpose": FINE_TUNE,
            "status": _STATUSES[row.status],
            "status_details": row.error["message"] if row.error else None,
            "x_validation": as_told(row.report),
        }
    )


def as_page(rows: Rows[Dataset | File]) -> Page[FileObject]:
    """Shape a list; reports, which may be long, are left out.

    Args:
        rows: Some data sets and files.

    Returns:
        The page.
    """
    shown = [as_file(row).model_copy(update={"x_validation": None}) for row in rows.items]
    return Page.of(shown, has_more=rows.has_more)


def read_content(store: ObjectStore, row: Dataset) -> Iterator[bytes]:
    """Read the rows as training reads them; the bytes as they were sent are not kept.

    Args:
        store: Where they are.
        row: The data set.

    Returns:
        JSONL in pieces: the training rows, then those of other splits.

    Raises:
        Conflict: There are no rows to show.
    """
    if row.status is not DatasetStatus.READY:
        raise Conflict(
            f"the file is {_STATUSES[row.status]}; it has no rows to show",
            code="dataset_not_ready",
            param="file_id",
        )
    keys = [row.splits[split]["key"] for split in _ORDER if split in row.splits]
    # the first is opened now, so that missing bytes are told before the answer begins
    first = store.stream(keys[0])
    return chain(first, chain.from_iterable(store.stream(key) for key in keys[1:]))
