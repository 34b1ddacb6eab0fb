"""Uploads in parts: each part is an object, and together they become a file like any other."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from app.openai.schemas.files import FileObject
from app.openai.schemas.uploads import (
    MAX_PART_BYTES,
    UploadCompletion,
    UploadObject,
    UploadPartObject,
    UploadRequest,
)
from app.openai.services import files
from app.openai.services.moments import unix_seconds
from app.services.form_fields import require_file
from app.services.multipart import Form, ReceivedFile, display_name
from app.services.parts import Parts, Unit
from core.db import Session, uploads
from core.db.models import Upload
from core.errors import BadInput, Conflict, NotFound, ServiceError, TooLarge, Unavailable
from core.settings import Settings
from core.states import UploadStatus
from core.storage import (
    ObjectStore,
    disk_faults_told,
    file_pieces,
    part_key,
    remove_objects,
)

PART_FIELD = "data"


def begin(
    session: Session, settings: Settings, *, tenant_id: str, request: UploadRequest
) -> UploadObject:
    """Begin an upload.

    Args:
        session: A writing session.
        settings: The most bytes of a file, and uploads of a tenant.
        tenant_id: Whose.
        request: What will come.

    Returns:
        The upload.

    Raises:
        TooLarge: The file will be larger than files may be.
    """
    files.check_purpose(request.purpose)
    limit_bytes = settings.max_upload_bytes
    if request.bytes > limit_bytes:
        raise TooLarge(
            f"{request.bytes} bytes are announced and a file has at most {limit_bytes}",
            param="bytes",
            details=[{"limit_bytes": limit_bytes}],
        )
    row = uploads.create(
        session,
        tenant_id=tenant_id,
        filename=display_name(request.filename) or "file",
        purpose=request.purpose,
        bytes=request.bytes,
        most_open=settings.max_open_uploads,
    )
    return _as_upload(row)


def read_part(form: Form) -> ReceivedFile:
    """Read the form of a part.

    Args:
        form: The whole form.

    Returns:
        Its bytes.

    Raises:
        BadInput: There are none, or fields beside them.
        TooLarge: There are too many.
    """
    data = require_file(form, PART_FIELD, what="bytes")
    for name in form.fields:
        raise BadInput(
            f"the form has a field {name[:64]!r}, which is not known here",
            code="unknown_field",
            param=name[:64],
        )
    if data.bytes == 0:
        raise BadInput("the part has no bytes", param=PART_FIELD)
    if data.bytes > MAX_PART_BYTES:
        raise TooLarge(
            f"the part has {data.bytes} bytes and a part has at most {MAX_PART_BYTES}",
            param=PART_FIELD,
            details=[{"limit_bytes": MAX_PART_BYTES}],
        )
    return data


def add_part(
    parts: Parts, *, tenant_id: str, upload_id: str, data: ReceivedFile
) -> UploadPartObject:
    """Keep a part: first the bytes, then the row.

    Args:
        parts: Where to store.
        tenant_id: Who sent it.
        upload_id: Whose part.
        data: Its bytes.

    Returns:
        The part. The same bytes sent again are another part.

    Raises:
        ServiceError: The upload takes no more; its bytes are removed.
    """
    part_id = uploads.new_part_id()
    key = part_key(upload_id, part_id)
    parts.store.put_stream(key, file_pieces(data.path))
    try:
        with parts.database.write() as session:
            row = uploads.add_part(session, tenant_id, upload_id, part_id=part_id, bytes=data.bytes)
    except ServiceError:
        remove_objects(parts.store, [key])
        raise
    return UploadPartObject(id=row.id, created_at=unix_seconds(row.created_at), upload_id=upload_id)


def complete(
    parts: Parts, *, tenant_id: str, upload_id: str, request: UploadCompletion, folder: Path
) -> UploadObject:
    """Join parts, and make a file of them.

    The upload ends in the transaction that makes the file: cancelled meanwhile it makes none. Two
    that complete it at once both join its parts, and equal bytes make one file.

    Args:
        parts: Where the bytes are, and whom to ask to check them.
        tenant_id: Who asks.
        upload_id: Which one.
        request: Which parts, in order.
        folder: Where the file is put together; the caller removes it.

    Returns:
        The upload with its file. One that is completed is given as it is.
    """
    with parts.database.read() as session:
        upload = uploads.get(session, tenant_id, upload_id)
        if upload.status is UploadStatus.COMPLETED:
            return _completed(session, upload, request)
        upload = uploads.get_pending(session, tenant_id, upload_id)
        uploads.check_parts(session, upload, request.part_ids)
    file = _join(parts.store, upload, request, folder=folder)
    given = files.Given(upload.purpose, file)
    gone: list[str] = []

    def end(session: Session, file_id: str) -> None:
        gone[:] = uploads.complete(
            session, tenant_id, upload_id, file_id=file_id, part_ids=request.part_ids
        )

    files.make_file(parts, tenant_id=tenant_id, given=given, folder=folder, beside=end)
    remove_objects(parts.store, [part_key(upload_id, part_id) for part_id in gone])
    with parts.database.read() as session:
        return _completed(session, uploads.get(session, tenant_id, upload_id), request)


def cancel(unit: Unit, store: ObjectStore, *, tenant_id: str, upload_id: str) -> UploadObject:
    """End an upload; its parts go after the commit.

    Args:
        unit: The transaction.
        store: Where the parts are.
        tenant_id: Who asks.
        upload_id: Which one.

    Returns:
        The upload.
    """
    row, gone = uploads.cancel(unit.session, tenant_id, upload_id)
    unit.then(lambda: remove_objects(store, [part_key(upload_id, part_id) for part_id in gone]))
    return _as_upload(row)


def _join(
    store: ObjectStore, upload: Upload, request: UploadCompletion, *, folder: Path
) -> ReceivedFile:
    """Put parts into one file on disk.

    Raises:
        BadInput: The md5 is another.
        Unavailable: The parts are gone: another request has ended the upload meanwhile.
    """
    # the client's checksum, no defence: what is checked is whether bytes were lost
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    path, length = folder / "joined", 0
    try:
        with disk_faults_told(), path.open("wb") as file:
            for piece in _pieces(store, upload.id, request.part_ids):
                file.write(piece)
                md5.update(piece)
                sha256.update(piece)
                length += len(piece)
    except NotFound as error:
        raise Unavailable(
            f"the upload {upload.id} was ended while its parts were joined; ask again",
            retry_after_seconds=1,
        ) from error
    wanted = (request.md5 or md5.hexdigest()).lower()
    if md5.hexdigest() != wanted:
        raise BadInput(
            f"the joined parts have the md5 {md5.hexdigest()}, not {wanted}",
            code="upload_mismatch",
            param="md5",
        )
    return ReceivedFile(path, upload.filename, length, sha256.hexdigest())


def _pieces(store: ObjectStore, upload_id: str, part_ids: Sequence[str]) -> Iterator[bytes]:
    for part_id in part_ids:
        yield from store.stream(part_key(upload_id, part_id))


def _completed(session: Session, upload: Upload, request: UploadCompletion) -> UploadObject:
    """Show a completed upload to who completes it again.

    Raises:
        Conflict: With other parts than the first time.
    """
    if list(request.part_ids) != upload.part_ids:
        raise Conflict(
            f"the upload {upload.id} was completed with other parts",
            code="upload_not_pending",
            param="part_ids",
        )
    return _as_upload(upload, _find_file(session, upload))


def _find_file(session: Session, upload: Upload) -> FileObject | None:
    try:
        return files.get_file(session, upload.tenant_id, str(upload.file_id))
    except NotFound:  # deleted since
        return None


def _as_upload(row: Upload, file: FileObject | None = None) -> UploadObject:
    return UploadObject(
        id=row.id,
        bytes=row.bytes,
        created_at=unix_seconds(row.created_at),
        expires_at=unix_seconds(row.expires_at),
        filename=row.filename,
        purpose=row.purpose,
        status=row.status.value,
        file=file,
    )
