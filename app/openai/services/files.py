"""Data sets, in the words of OpenAI's files."""

from collections.abc import Iterator
from itertools import chain

from app.openai.schemas.files import PURPOSE, FileObject
from app.schemas.shared import Page
from app.services import uploads
from app.services.form_fields import require_file
from app.services.multipart import Form
from core.db.models import Dataset
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


def read_form(form: Form, *, idempotency_key: str | None) -> uploads.Upload:
    """Read what a form asks for.

    Args:
        form: The whole form.
        idempotency_key: The caller's key, if any.

    Returns:
        The upload: every row is for training.

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
        raise BadInput(f"send purpose: {PURPOSE}", code="missing_field", param="purpose")
    if purpose != PURPOSE:
        raise BadInput(
            f"the purpose {purpose[:64]!r} is not offered here; files are for {PURPOSE}",
            code="unsupported",
            param="purpose",
        )
    return uploads.whole_file(file, idempotency_key=idempotency_key)


def as_file(row: Dataset) -> FileObject:
    """Shape a data set as a file.

    Args:
        row: The data set.

    Returns:
        What is shown of it.
    """
    return FileObject.model_validate(
        {
            "id": row.id,
            "bytes": row.bytes or 0,
            "created_at": int(row.created_at.timestamp()),
            "filename": row.filename or f"{row.name}.jsonl",
            "status": _STATUSES[row.status],
            "status_details": row.error["message"] if row.error else None,
            "x_validation": row.report,
        }
    )


def as_page(rows: Rows[Dataset]) -> Page[FileObject]:
    """Shape a list; reports, which may be long, are left out.

    Args:
        rows: Some data sets.

    Returns:
        The page.
    """
    files = [as_file(row).model_copy(update={"x_validation": None}) for row in rows.items]
    return Page.of(files, has_more=rows.has_more)


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
