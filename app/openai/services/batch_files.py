"""Files of requests and answers: kept as they came, under ids of their own."""

from app.openai.schemas.files import FileObject
from app.openai.services.moments import unix_seconds
from app.services.multipart import ReceivedFile
from app.services.parts import Parts, Unit
from app.services.stored_rows import Beside, write_row
from core.db import files
from core.db.idempotency import digest_request
from core.db.models import File
from core.errors import BadInput
from core.storage import ObjectStore, file_key, file_pieces, remove_objects


def is_one(file_id: str) -> bool:
    """Whether an id is of this kind; the others are of data sets.

    Args:
        file_id: As it was sent.

    Returns:
        True for ``file_…``.
    """
    return file_id.startswith("file_")


def take_in(
    parts: Parts,
    *,
    tenant_id: str,
    file: ReceivedFile,
    idempotency_key: str | None,
    beside: Beside | None,
) -> File:
    """Keep requests: first the bytes, then the row.

    Args:
        parts: Where to store.
        tenant_id: The owner.
        file: On local disk.
        idempotency_key: The caller's key; without one the same bytes under the same name are the
            same file.
        beside: What is written with the row.

    Returns:
        The row. ``Conflict`` goes through when the key was used for another file, or for one that
        was deleted, or ``beside`` refused it.

    Raises:
        BadInput: There are no bytes.
    """
    if file.bytes == 0:
        raise BadInput("the file is empty", code="empty_file", param="file")
    file_id = files.new_file_id()
    key = file_key(file_id)
    parts.store.put_stream(key, file_pieces(file.path))
    row = File(
        id=file_id,
        tenant_id=tenant_id,
        purpose=files.BATCH,
        filename=file.filename or f"{file_id}.jsonl",
        bytes=file.bytes,
        sha256=file.sha256,
        key=key,
        idempotency_key=idempotency_key,
        request_digest=digest_request([files.BATCH, file.filename, file.sha256]),
    )
    kept, _ = write_row(parts, [key], lambda session: files.create_once(session, row), beside)
    return kept


def as_file(row: File) -> FileObject:
    """Shape a row for the user.

    Args:
        row: The file.

    Returns:
        What is shown of it.
    """
    return FileObject.model_validate(
        {
            "id": row.id,
            "bytes": row.bytes,
            "created_at": unix_seconds(row.created_at),
            "filename": row.filename,
            "purpose": row.purpose,
            "status": "processed",
        }
    )


def delete(unit: Unit, store: ObjectStore, *, tenant_id: str, file_id: str) -> None:
    """Delete a file; its object goes after the commit.

    Args:
        unit: The transaction.
        store: Where the bytes are.
        tenant_id: Who asks.
        file_id: Which one.
    """
    row = files.mark_deleted(unit.session, tenant_id, file_id)
    unit.then(lambda: remove_objects(store, [row.key]))
