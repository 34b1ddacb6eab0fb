"""Files that come in parts: what was announced, and which parts have come.

A part's row stands exactly as long as its bytes are needed. Whoever ends an upload deletes the
rows, and removes the bytes after the commit; bytes that stay then are found as orphans.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db import clock, owned
from core.db.locks import lock_name
from core.db.models import Upload, UploadPart
from core.errors import BadInput, Conflict, TooLarge
from core.ids import new_id
from core.states import UploadStatus

OPEN_SECONDS = 3600.0
"""As OpenAI has it: an upload that has not been completed for so long expires."""
COMPLETING_SECONDS = 900.0
"""The parts stay so much longer, since a completion that began in time may still read them."""
MAX_PARTS = 1000
"""Rows of one upload, those that will not be used too."""
MOST_SENDS = 3
"""The official client sends a part three times before it gives up, and each may have arrived."""


def new_part_id() -> str:
    """Make an id before the row exists, so that the bytes can lie under it first.

    Returns:
        ``part_…``.
    """
    return new_id("part")


def create(
    session: Session, *, tenant_id: str, filename: str, purpose: str, bytes: int, most_open: int
) -> Upload:
    """Begin an upload.

    Args:
        session: A writing session.
        tenant_id: Whose.
        filename: What the file is called.
        purpose: What it is for.
        bytes: How long it will be.
        most_open: How many of one tenant may be open.

    Returns:
        The upload, pending.

    Raises:
        Conflict: So many are open already (code ``too_many_uploads``).
    """
    lock_name(session, f"uploads/{tenant_id}")
    query = (
        sa.select(sa.func.count())
        .select_from(Upload)
        .where(Upload.tenant_id == tenant_id, *_open())
    )
    count = session.scalar(query) or 0
    if count >= most_open:
        message = (
            f"{count} uploads are open and {most_open} may be; complete or cancel one, or wait: "
            "each expires an hour after it was begun"
        )
        raise Conflict(message, code="too_many_uploads")
    row = Upload(
        id=new_id("upload"),
        tenant_id=tenant_id,
        filename=filename,
        purpose=purpose,
        bytes=bytes,
        status=UploadStatus.PENDING,
        expires_at=clock.later(OPEN_SECONDS),
    )
    session.add(row)
    session.flush()
    return row


def get(session: Session, tenant_id: str, upload_id: str) -> Upload:
    """Read an upload.

    Args:
        session: An open session.
        tenant_id: Who asks.
        upload_id: Which one.

    Returns:
        The upload, in whatever status; ``NotFound`` when the tenant has none such.
    """
    return owned.get(session, Upload, tenant_id, upload_id)


def get_pending(session: Session, tenant_id: str, upload_id: str, *, holds: bool = False) -> Upload:
    """Read an upload that takes parts and may be completed.

    Args:
        session: An open session.
        tenant_id: Who asks.
        upload_id: Which one.
        holds: Whether it shall stay as it is until the transaction ends.

    Returns:
        The upload.

    Raises:
        Conflict: It has ended (code ``upload_not_pending``).
    """
    lock = owned.Lock.CHANGE if holds else None
    row = owned.get(session, Upload, tenant_id, upload_id, lock=lock)
    status = row.status
    if status is UploadStatus.PENDING:
        query = sa.select(Upload.id).where(Upload.id == upload_id, *_open())
        if session.scalar(query) is not None:
            return row
        status = UploadStatus.EXPIRED
    message = f"the upload {upload_id} is {status}; begin another with POST /v1/uploads"
    raise Conflict(message, code="upload_not_pending", param="upload_id")


def add_part(
    session: Session, tenant_id: str, upload_id: str, *, part_id: str, bytes: int
) -> UploadPart:
    """Note a part whose bytes are stored.

    Args:
        session: A writing session.
        tenant_id: Who sent it.
        upload_id: Whose part.
        part_id: From ``new_part_id``.
        bytes: Its length.

    Returns:
        The part.

    Raises:
        TooLarge: The upload has too many parts, or too many bytes.
    """
    upload = get_pending(session, tenant_id, upload_id, holds=True)
    query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(UploadPart.bytes), 0))
    count, total = session.execute(query.where(UploadPart.upload_id == upload_id)).one()
    if count >= MAX_PARTS:
        message = f"an upload has at most {MAX_PARTS} parts, those that were sent again included"
        raise TooLarge(message, param="data", details=[{"limit_parts": MAX_PARTS}])
    limit_bytes = upload.bytes * MOST_SENDS
    if total + bytes > limit_bytes:
        message = (
            f"the parts have {total + bytes} bytes, {upload.bytes} were announced; parts that were "
            f"sent again may make it {MOST_SENDS} times as many"
        )
        raise TooLarge(message, param="data", details=[{"limit_bytes": limit_bytes}])
    part = UploadPart(id=part_id, upload_id=upload_id, tenant_id=tenant_id, bytes=bytes)
    session.add(part)
    session.flush()
    return part


def check_parts(session: Session, upload: Upload, part_ids: Sequence[str]) -> None:
    """Check that parts make up what was announced.

    Args:
        session: An open session.
        upload: The upload.
        part_ids: In the order of the file; parts that are not named are not used.

    Raises:
        BadInput: One is not known or named twice, or they have another length (code
            ``upload_mismatch``).
    """
    query = sa.select(UploadPart.id, UploadPart.bytes).where(UploadPart.upload_id == upload.id)
    sizes: dict[str, int] = {row.id: row.bytes for row in session.execute(query)}
    for place, part_id in enumerate(part_ids):
        if part_id not in sizes:
            message = f"{part_id!r:.80} is no part of the upload {upload.id}"
            raise BadInput(message, param=f"part_ids.{place}")
        if part_id in part_ids[:place]:
            message = f"{part_id} is named twice; a part is used once"
            raise BadInput(message, param=f"part_ids.{place}")
    total = sum(sizes[part_id] for part_id in part_ids)
    if total != upload.bytes:
        message = f"the parts have {total} bytes, and {upload.bytes} were announced"
        raise BadInput(message, code="upload_mismatch", param="part_ids")


def complete(
    session: Session, tenant_id: str, upload_id: str, *, file_id: str, part_ids: Sequence[str]
) -> list[str]:
    """End an upload whose parts have become a file.

    Args:
        session: A writing session, in which the file's row was made.
        tenant_id: Who asks.
        upload_id: Which one.
        file_id: What the parts became.
        part_ids: In the order in which they were joined.

    Returns:
        The ids of all parts, whose bytes may go; none when another request has made the same file
        of them.

    Raises:
        Conflict: It was cancelled, has expired or became another file (code
            ``upload_not_pending``).
    """
    row = owned.get(session, Upload, tenant_id, upload_id, lock=owned.Lock.CHANGE)
    if (row.file_id, row.part_ids) == (file_id, list(part_ids)):
        return []
    if row.status is not UploadStatus.PENDING:
        message = f"the upload {upload_id} was {row.status} while its parts were joined"
        raise Conflict(message, code="upload_not_pending", param="upload_id")
    row.status, row.file_id, row.part_ids = UploadStatus.COMPLETED, file_id, list(part_ids)
    return _forget_parts(session, [upload_id])[upload_id]


def cancel(session: Session, tenant_id: str, upload_id: str) -> tuple[Upload, list[str]]:
    """End an upload for good; one that was cancelled before stays so.

    Args:
        session: A writing session.
        tenant_id: Who asks.
        upload_id: Which one.

    Returns:
        The upload and the ids of all parts, whose bytes may go.
    """
    row = owned.get(session, Upload, tenant_id, upload_id, lock=owned.Lock.CHANGE)
    if row.status is UploadStatus.CANCELLED:
        return row, []
    row = get_pending(session, tenant_id, upload_id)
    row.status = UploadStatus.CANCELLED
    return row, _forget_parts(session, [upload_id])[upload_id]


def expire(session: Session) -> dict[str, list[str]]:
    """End the uploads that were left open.

    Args:
        session: A writing session.

    Returns:
        By the id of each upload the ids of its parts, whose bytes may go.
    """
    lock_name(session, "uploads/sweep")
    statement = (
        sa.update(Upload)
        .where(
            Upload.status == UploadStatus.PENDING,
            Upload.expires_at < clock.later(-COMPLETING_SECONDS),
        )
        .values(status=UploadStatus.EXPIRED)
        .returning(Upload.id)
        .execution_options(synchronize_session=False)
    )
    return _forget_parts(session, sorted(session.scalars(statement)))


def _forget_parts(session: Session, upload_ids: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {upload_id: [] for upload_id in upload_ids}
    statement = (
        sa.delete(UploadPart)
        .where(UploadPart.upload_id.in_(upload_ids))
        .returning(UploadPart.upload_id, UploadPart.id)
        .execution_options(synchronize_session=False)
    )
    for upload_id, part_id in session.execute(statement) if upload_ids else ():
        found[upload_id].append(part_id)
    return found


def _open() -> tuple[sa.ColumnElement[bool], ...]:
    return (Upload.status == UploadStatus.PENDING, Upload.expires_at > clock.now())
