"""``/v1/uploads``: files in parts, for those that are too large to be sent at once."""

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from app.dependencies import GuardedRoute, Id, PartsDep, UnitDep, Writer
from app.openai.routes.documented import body_examples
from app.openai.schemas.uploads import (
    MAX_PART_BYTES,
    UploadCompletion,
    UploadObject,
    UploadPartObject,
    UploadRequest,
)
from app.openai.services import uploads as service
from app.receiving import receive_form, staging_folder
from app.schemas.errors import FORM_BODY, JSON_BODY, error_answers
from app.schemas.forms import FILE, described, form_body
from app.services.parts import Parts
from core.db import uploads

router = APIRouter(prefix="/v1/uploads", tags=["openai"], route_class=GuardedRoute)

_ENVELOPE_BYTES = 64 * 1024
"""Boundaries and headers of a form that carries one part."""

_PART_BODY = form_body(
    {service.PART_FIELD: described(FILE, "Bytes of the file, 64 MiB at most.")},
    required=(service.PART_FIELD,),
)


@router.post(
    "",
    summary="Begin an upload in parts",
    response_model=UploadObject,
    openapi_extra=body_examples(
        menu=(
            "A file of 100 MB",
            {
                "bytes": 100_000_000,
                "filename": "menu.jsonl",
                "mime_type": "application/jsonl",
                "purpose": "fine-tune",
            },
        ),
    ),
    responses=error_answers("unsupported", "too_many_uploads", *JSON_BODY),
)
def create_upload(
    body: UploadRequest, caller: Writer, unit: UnitDep, parts: PartsDep
) -> UploadObject:
    """Announce a file that will come in parts; it must be completed within an hour."""
    return service.begin(unit.session, parts.settings, tenant_id=caller.tenant_id, request=body)


@router.post(
    "/{upload_id}/parts",
    summary="Send a part",
    response_model=UploadPartObject,
    openapi_extra={"requestBody": _PART_BODY},
    responses=error_answers("upload_not_found", "upload_not_pending", *FORM_BODY),
)
async def create_upload_part(
    upload_id: Id, request: Request, caller: Writer, parts: PartsDep
) -> UploadPartObject:
    """Send some bytes of the file, in any order and several at a time.

    A part that is sent again after a lost answer is another part; the one that is not named when
    the upload is completed is dropped.
    """
    # before its bytes are read: whoever cannot use them is told at once
    await run_in_threadpool(_check_pending, parts, caller.tenant_id, upload_id)
    async with staging_folder(parts.settings) as folder:
        form = await receive_form(
            request,
            folder=folder,
            max_bytes=MAX_PART_BYTES + _ENVELOPE_BYTES,
            file_fields=frozenset({service.PART_FIELD}),
        )
        return await run_in_threadpool(
            service.add_part,
            parts,
            tenant_id=caller.tenant_id,
            upload_id=upload_id,
            data=service.read_part(form),
        )


@router.post(
    "/{upload_id}/complete",
    summary="Complete an upload",
    response_model=UploadObject,
    openapi_extra=body_examples(
        two=("Two parts", {"part_ids": ["part_06f1k2m3n4p5q6r7s8t9v0w1x2", "part_06f1k2m3n4p5"]}),
    ),
    responses=error_answers(
        "upload_not_found",
        "upload_not_pending",
        "upload_mismatch",
        "storage_unavailable",
        *JSON_BODY,
    ),
)
async def complete_upload(
    upload_id: Id, body: UploadCompletion, caller: Writer, parts: PartsDep
) -> UploadObject:
    """Join the parts in the order of their ids; what comes out is a file like any other.

    Number of bytes and md5 are checked first; after `upload_mismatch` the upload is still open.
    Completed again with the same parts, it gives the same file.
    """
    async with staging_folder(parts.settings) as folder:
        return await run_in_threadpool(
            service.complete,
            parts,
            tenant_id=caller.tenant_id,
            upload_id=upload_id,
            request=body,
            folder=folder,
        )


@router.post(
    "/{upload_id}/cancel",
    summary="Cancel an upload",
    response_model=UploadObject,
    responses=error_answers("upload_not_found", "upload_not_pending"),
)
def cancel_upload(upload_id: Id, caller: Writer, unit: UnitDep, parts: PartsDep) -> UploadObject:
    """Drop all parts; an upload that is cancelled already stays so."""
    return service.cancel(unit, parts.store, tenant_id=caller.tenant_id, upload_id=upload_id)


def _check_pending(parts: Parts, tenant_id: str, upload_id: str) -> None:
    with parts.database.read() as session:
        uploads.get_pending(session, tenant_id, upload_id)
