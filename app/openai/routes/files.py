"""``/v1/files``: data sets, and files of batches, for programs that speak to OpenAI."""

from collections.abc import Iterator
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from app.dependencies import (
    After,
    GuardedRoute,
    Id,
    IdempotencyKey,
    PartsDep,
    ReadDep,
    Reader,
    UnitDep,
    Writer,
)
from app.openai.routes.refusing import renaming
from app.openai.schemas.files import PURPOSES, FileObject
from app.openai.services import batch_files
from app.openai.services import files as service
from app.receiving import receive_form, staging_folder
from app.schemas.errors import FORM_BODY, error_answers
from app.schemas.forms import FILE, TEXT, described, form_body
from app.schemas.shared import MAX_PAGE_ROWS, Deleted, Page
from app.services import datasets as native
from core.db import datasets, files

router = APIRouter(prefix="/v1/files", tags=["openai"], route_class=GuardedRoute)

_FIELDS = {"dataset_id": "file_id"}
_CONTENT_TYPE = "application/jsonl"

_CREATE_BODY = form_body(
    {
        "purpose": {**TEXT, "enum": list(PURPOSES)},
        "file": described(
            FILE,
            "To train on: JSONL of `messages`, or what `POST /datasets` reads. Of a batch: JSONL "
            "of `custom_id`, `method`, `url`, `body`.",
        ),
    },
    required=("purpose", "file"),
)


@router.post(
    "",
    summary="Upload a file",
    response_model=FileObject,
    openapi_extra={"requestBody": _CREATE_BODY},
    responses=error_answers("unsupported", "idempotency_mismatch", *FORM_BODY),
)
async def create_file(
    request: Request, caller: Writer, parts: PartsDep, idempotency_key: IdempotencyKey = None
) -> FileObject:
    """Upload rows to train on (`fine-tune`), or requests (`batch`).

    Rows to train on are a data set all of whose rows are for training (unless a column `split` says
    otherwise). They are checked after the answer: ask `GET /v1/files/{id}` until its status is
    `processed` or `error`. Requests are kept as they came, and checked by `POST /v1/batches`. The
    same bytes under the same name are the same file.
    """
    async with staging_folder(parts.settings) as folder:
        form = await receive_form(
            request,
            folder=folder,
            max_bytes=parts.settings.max_upload_bytes,
            file_fields=frozenset({"file"}),
        )
        return await run_in_threadpool(
            service.make_file,
            parts,
            tenant_id=caller.tenant_id,
            given=service.read_form(form),
            folder=folder,
            idempotency_key=idempotency_key,
        )


@router.get("", summary="List files", response_model=Page[FileObject], responses=error_answers())
def list_files(
    caller: Reader,
    session: ReadDep,
    purpose: Annotated[
        str | None,
        Query(max_length=64, description="`fine-tune`, `batch`, or `batch_output`."),
    ] = None,
    limit: Annotated[
        int,
        Query(
            ge=1, le=10_000, description=f"A page has at most {MAX_PAGE_ROWS}, whatever this says."
        ),
    ] = MAX_PAGE_ROWS,
    order: Literal["asc", "desc"] = "desc",
    after: After = None,
) -> Page[FileObject]:
    """List your data sets and files of batches, newest first unless `order` says otherwise."""
    rows = files.list_page(
        session,
        caller.tenant_id,
        purpose=purpose,
        limit=min(limit, MAX_PAGE_ROWS),
        after=after,
        oldest_first=order == "asc",
    )
    return service.as_page(rows)


@router.get(
    "/{file_id}",
    summary="Get a file",
    response_model=FileObject,
    responses=error_answers("dataset_not_found", "file_not_found"),
)
def get_file(file_id: Id, caller: Reader, session: ReadDep) -> FileObject:
    """Show a file; of rows to train on with everything that validation found."""
    with renaming(_FIELDS):
        return service.get_file(session, caller.tenant_id, file_id)


@router.get(
    "/{file_id}/content",
    summary="Download a file",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "JSONL: one row, request or answer a line.",
            "content": {_CONTENT_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        },
        **error_answers(
            "dataset_not_found", "file_not_found", "dataset_not_ready", "storage_unavailable"
        ),
    },
)
def get_file_content(
    file_id: Id, caller: Reader, session: ReadDep, parts: PartsDep
) -> StreamingResponse:
    """Download rows as training reads them, or a file of a batch as it is.

    Of rows to train on the bytes as they were sent are not kept.
    """
    pieces: Iterator[bytes]
    if batch_files.is_one(file_id):
        pieces = parts.store.stream(files.get(session, caller.tenant_id, file_id).key)
    else:
        with renaming(_FIELDS):
            row = datasets.get(session, caller.tenant_id, file_id)
        pieces = service.read_content(parts.store, row)
    return StreamingResponse(pieces, media_type=_CONTENT_TYPE)


@router.delete(
    "/{file_id}",
    summary="Delete a file",
    response_model=Deleted,
    responses=error_answers("dataset_not_found", "file_not_found", "dataset_in_use", "file_in_use"),
)
def delete_file(file_id: Id, caller: Writer, unit: UnitDep, parts: PartsDep) -> Deleted:
    """Delete a file; a job or a batch that has not ended keeps what it needs."""
    if batch_files.is_one(file_id):
        batch_files.delete(unit, parts.store, tenant_id=caller.tenant_id, file_id=file_id)
        return Deleted(id=file_id, object="file")
    with renaming(_FIELDS):
        native.delete(unit, parts.store, tenant_id=caller.tenant_id, dataset_id=file_id)
    return Deleted(id=file_id, object="file")
