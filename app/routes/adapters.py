"""``/adapters``: what training made."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from app.dependencies import (
    After,
    GuardedRoute,
    Id,
    IdempotencyKey,
    Limit,
    PartsDep,
    ReadDep,
    Reader,
    UnitDep,
    Writer,
)
from app.receiving import receive_form, staging_folder
from app.schemas.adapters import AdapterAnswer, Lineage
from app.schemas.errors import FORM_BODY, JSON_BODY, error_answers
from app.schemas.exchange import MergeRequest
from app.schemas.forms import FILE, TEXT, described, form_body
from app.schemas.shared import Deleted, Page
from app.services import adapters as service
from app.services import exchange
from core.db import adapters

router = APIRouter(prefix="/adapters", tags=["adapters"], route_class=GuardedRoute)


@router.get(
    "", summary="List adapters", response_model=Page[AdapterAnswer], responses=error_answers()
)
def list_adapters(
    caller: Reader,
    session: ReadDep,
    name: Annotated[
        str | None, Query(pattern=r"^[\x20-\x7e]{1,64}$", description="All versions of it.")
    ] = None,
    base_model: Annotated[str | None, Query(pattern=r"^[\x20-\x7e]{1,256}$")] = None,
    task: Annotated[str | None, Query(pattern=r"^[\x20-\x7e]{1,64}$")] = None,
    limit: Limit = 20,
    after: After = None,
) -> Page[AdapterAnswer]:
    """List your adapters, newest first."""
    page = adapters.list_page(
        session,
        caller.tenant_id,
        name=name,
        base_model=base_model,
        task=task,
        limit=limit,
        after=after,
    )
    rows = service.as_answers(session, caller.tenant_id, page.items, in_list=True)
    return Page.of(rows, has_more=page.has_more)


_IMPORT_BODY = form_body(
    {
        "file": described(
            FILE,
            "zip or tar of a folder of HF PEFT or AdapterHub, or a native safetensors file.",
        ),
        "name": TEXT,
        "base_model": TEXT,
        "labels": described(TEXT, 'JSON: `["no", "yes"]`'),
        "multi_label": described(TEXT, "JSON: `true` or `false`"),
        "max_length": described(TEXT, "JSON: a number"),
        "metadata": described(TEXT, 'JSON: `{"team": "care"}`'),
    }
)


@router.post(
    "",
    status_code=201,
    summary="Import an adapter",
    response_model=AdapterAnswer,
    openapi_extra={"requestBody": _IMPORT_BODY},
    responses={
        200: {"model": AdapterAnswer, "description": "The same request came before: its adapter."},
        **error_answers(
            "adapter_invalid",
            "base_model_required",
            "base_not_found",
            "invalid_json",
            "idempotency_mismatch",
            "name_taken",
            "inference_unavailable",
            *FORM_BODY,
        ),
    },
)
async def import_adapter(
    request: Request,
    response: Response,
    caller: Writer,
    parts: PartsDep,
    idempotency_key: IdempotencyKey = None,
) -> AdapterAnswer:
    """Bring an adapter along that HF PEFT or AdapterHub made, or that was exported here.

    Every tensor must be used, every expected tensor must be there, and an option that would change
    the function is refused: `details` lists every reason. The adapter then answers `/predict` and
    can be continued (`parent_adapter_id`) like any other; `origin` tells where it comes from.
    """
    async with staging_folder(parts.settings) as folder:
        form = await receive_form(
            request,
            folder=folder,
            max_bytes=parts.settings.max_upload_bytes,
            file_fields=exchange.FILE_FIELDS,
        )
        brought = exchange.read_form(form, idempotency_key=idempotency_key)
        row, is_new = await exchange.take_in(parts, tenant_id=caller.tenant_id, brought=brought)
    response.status_code = 201 if is_new else 200
    response.headers["location"] = f"/adapters/{row.id}"
    return await run_in_threadpool(service.show, parts, caller.tenant_id, row.id)


@router.post(
    ":merge",
    status_code=201,
    summary="Merge adapters",
    response_model=AdapterAnswer,
    responses={
        200: {"model": AdapterAnswer, "description": "The same request came before: its adapter."},
        **error_answers(
            "merge_not_possible",
            "adapter_not_found",
            "base_mismatch",
            "dataset_not_found",
            "dataset_not_ready",
            "idempotency_mismatch",
            "name_taken",
            "storage_unavailable",
            "inference_unavailable",
            *JSON_BODY,
        ),
    },
)
async def merge_adapters(
    body: MergeRequest,
    response: Response,
    caller: Writer,
    parts: PartsDep,
    idempotency_key: IdempotencyKey = None,
) -> AdapterAnswer:
    """Make a new adapter out of several of one base: linear, TIES or DARE.

    The result is a LoRA of a rank of your choice (singular value decomposition) or a dense
    difference. With `dataset_id` it is evaluated on the first 2 000 rows of the test split, and
    `origin.evaluation` has its metrics.
    """
    row, is_new = await exchange.merge(
        parts, tenant_id=caller.tenant_id, asked=body, idempotency_key=idempotency_key
    )
    response.status_code = 201 if is_new else 200
    response.headers["location"] = f"/adapters/{row.id}"
    return await run_in_threadpool(service.show, parts, caller.tenant_id, row.id)


@router.get(
    "/{adapter_id}",
    summary="Get an adapter",
    response_model=AdapterAnswer,
    responses=error_answers("adapter_not_found"),
)
def get_adapter(adapter_id: Id, caller: Reader, session: ReadDep) -> AdapterAnswer:
    """Show an adapter by id, name (its newest version), `name@version` or alias."""
    row = adapters.resolve(session, caller.tenant_id, adapter_id)
    return service.as_answers(session, caller.tenant_id, [row])[0]


@router.get(
    "/{adapter_id}/lineage",
    summary="Get an adapter's lineage",
    response_model=Lineage,
    responses=error_answers("adapter_not_found"),
)
def get_lineage(adapter_id: Id, caller: Reader, session: ReadDep) -> Lineage:
    """Show which adapters it was continued from, and which were continued from it.

    Deleted ones are shown, since what was made from them is not.
    """
    return service.show_lineage(session, tenant_id=caller.tenant_id, reference=adapter_id)


async def _refuse_while_answering(adapter_id: Id, caller: Writer, parts: PartsDep) -> None:
    # a dependency of its own: no transaction is open while other processes are asked
    await service.refuse_while_answering(parts, tenant_id=caller.tenant_id, reference=adapter_id)


@router.delete(
    "/{adapter_id}",
    summary="Delete an adapter",
    response_model=Deleted,
    responses=error_answers("adapter_not_found", "adapter_in_use", "inference_unavailable"),
    dependencies=[Depends(_refuse_while_answering)],
)
def delete_adapter(adapter_id: Id, caller: Writer, unit: UnitDep, parts: PartsDep) -> Deleted:
    """Delete one adapter. Its version number is not given again.

    Refused while an alias points to it, while a job that continues from it has not ended, or while
    requests that name it wait or run.
    """
    gone = service.delete(unit, parts, tenant_id=caller.tenant_id, reference=adapter_id)
    return Deleted(id=gone, object="adapter")


@router.get(
    "/{adapter_id}/export",
    summary="Download an adapter",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "The file. `etag` is the digest of the delta.",
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
            },
        },
        **error_answers(
            "adapter_not_found",
            "export_not_possible",
            "object_not_found",
            "storage_unavailable",
            "inference_unavailable",
        ),
    },
)
async def export_adapter(
    adapter_id: Id,
    caller: Reader,
    parts: PartsDep,
    form: Annotated[
        Literal["native", "peft", "peft-portable", "adapterhub", "merged", "gguf"],
        Query(alias="format"),
    ] = "native",
    head: Annotated[
        Literal["keep", "leave-out"],
        Query(
            description="`leave-out`: only what acts on the base, for heads that the format has no "
            "place for. A native file keeps its head."
        ),
    ] = "keep",
) -> StreamingResponse:
    """Download an adapter in a format of your choice.

    `native`: the delta itself, safetensors with the manifest in its header. `peft`: a zip that HF
    PEFT loads. `peft-portable`: a LoRA that PEFT, vLLM and LoRAX read alike. `adapterhub`: a zip
    for AdapterHub. `merged`: a whole model of transformers with the adapter in its weights. `gguf`:
    a LoRA for llama.cpp. A format that cannot hold the adapter is refused, and `details` lists
    everything that it cannot hold.
    """
    row = await run_in_threadpool(service.find, parts, caller.tenant_id, adapter_id)
    if form != "native":
        sending = await exchange.give_out(parts, row, form, head)
        return StreamingResponse(
            sending.pieces,
            media_type="application/octet-stream",
            headers=_download_headers(sending.filename, sending.digest),
        )
    found = await run_in_threadpool(service.export, parts, row)
    return StreamingResponse(
        found.pieces,
        media_type="application/octet-stream",
        headers={
            **_download_headers(found.filename, found.digest),
            "content-length": str(found.size_bytes),
        },
    )


def _download_headers(filename: str, digest: str) -> dict[str, str]:
    return {
        "content-disposition": f'attachment; filename="{filename}"',
        "etag": f'"{digest}"',
    }
