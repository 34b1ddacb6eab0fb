"""Read the body of an upload as it comes: a form to disk, JSON into bounded memory."""

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from pydantic import ValidationError

from app.schemas.datasets import DatasetCreate
from app.schemas.shared import refusal_of
from app.services import uploads
from app.services.multipart import Form, FormReceiver, boundary_of
from core.errors import BadInput, TooLarge, UnsupportedMedia
from core.settings import Settings
from core.storage import disk_faults_told, make_scratch

PIECE_BYTES = 1 << 20
"""Pieces of a body are gathered to this length: large enough to be worth a thread."""


async def receive_upload(
    request: Request, *, folder: Path, settings: Settings, idempotency_key: str | None
) -> uploads.Upload:
    """Receive a data set in either form.

    Args:
        request: Whose body has not been touched yet.
        folder: Where files are written; the caller removes it.
        settings: The most bytes of a form, and of JSON.
        idempotency_key: The caller's key, if any.

    Returns:
        The whole upload on disk.

    Raises:
        UnsupportedMedia: Neither a form nor JSON.
    """
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        form = await receive_form(
            request,
            folder=folder,
            max_bytes=settings.max_upload_bytes,
            file_fields=frozenset(uploads.FILE_FIELDS),
        )
        return uploads.read_form(form, idempotency_key=idempotency_key)
    if kind == "application/json":
        body = await _receive_json(request, settings.max_body_bytes)
        return await run_in_threadpool(
            uploads.write_records, body, folder=folder, idempotency_key=idempotency_key
        )
    raise UnsupportedMedia(
        f"Content-Type {kind[:100]!r} is not read here; send multipart/form-data with a part named "
        "file, or application/json with records",
        param="content-type",
    )


@asynccontextmanager
async def staging_folder(settings: Settings) -> AsyncIterator[Path]:
    """Give a folder for an upload, and remove it.

    Args:
        settings: Where the process keeps its data.

    Yields:
        The folder.
    """
    with disk_faults_told():
        folder = await run_in_threadpool(make_scratch, settings.data_dir, prefix="upload-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def receive_form(
    request: Request, *, folder: Path, max_bytes: int, file_fields: frozenset[str]
) -> Form:
    """Receive a form, its files to disk.

    Args:
        request: Whose body has not been touched yet.
        folder: Where files are written; the caller removes it.
        max_bytes: The most bytes of the whole body.
        file_fields: Names of the fields that may carry a file.

    Returns:
        The whole form.
    """
    boundary = boundary_of(request.headers.get("content-type", ""), file_fields=file_fields)
    _check_announced(request, max_bytes, f"the upload is larger than {max_bytes} bytes")
    receiver = FormReceiver(boundary, folder=folder, file_fields=file_fields, max_bytes=max_bytes)
    try:
        waiting = bytearray()
        async for piece in request.stream():
            waiting += piece
            if len(waiting) >= PIECE_BYTES:
                await run_in_threadpool(receiver.feed, bytes(waiting))
                waiting.clear()
        await run_in_threadpool(receiver.feed, bytes(waiting))
        return receiver.close()
    finally:
        receiver.abandon()


async def _receive_json(request: Request, max_bytes: int) -> DatasetCreate:
    message = f"a JSON body has at most {max_bytes} bytes; send more rows as a file"
    _check_announced(request, max_bytes, message)
    received = bytearray()
    async for piece in request.stream():
        received += piece
        if len(received) > max_bytes:
            raise TooLarge(message, details=[{"limit_bytes": max_bytes}])
    return await run_in_threadpool(_parse_body, bytes(received))


def _check_announced(request: Request, max_bytes: int, message: str) -> None:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise TooLarge(message, details=[{"limit_bytes": max_bytes}])


def _parse_body(received: bytes) -> DatasetCreate:
    try:
        return DatasetCreate.model_validate(json.loads(received))
    except ValidationError as error:
        raise refusal_of(error) from error
    # not UTF-8, not JSON, an integer of 5,000 digits, or nested too deeply
    except (ValueError, RecursionError) as error:
        reason = str(error)[:200]
        raise BadInput(f"the body is not valid JSON: {reason}", code="invalid_json") from error
