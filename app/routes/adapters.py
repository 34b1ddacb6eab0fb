"""``/adapters``: what training made."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse

from app.dependencies import (
    After,
    GuardedRoute,
    Id,
    Limit,
    PartsDep,
    ReadDep,
    Reader,
    UnitDep,
    Writer,
)
from app.schemas.adapters import AdapterAnswer, Lineage
from app.schemas.errors import error_answers
from app.schemas.shared import Deleted, Page
from app.services import adapters as service
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
            "adapter_not_found", "unsupported", "object_not_found", "storage_unavailable"
        ),
    },
)
def export_adapter(
    adapter_id: Id,
    caller: Reader,
    session: ReadDep,
    parts: PartsDep,
    form: Annotated[
        Literal["native", "peft", "adapterhub", "merged", "gguf"], Query(alias="format")
    ] = "native",
) -> StreamingResponse:
    """Download the delta: safetensors with the manifest in its header (format `native`)."""
    found = service.export(
        session, parts, tenant_id=caller.tenant_id, reference=adapter_id, form=form
    )
    return StreamingResponse(
        found.pieces,
        media_type="application/octet-stream",
        headers={
            "content-disposition": f'attachment; filename="{found.filename}"',
            "content-length": str(found.size_bytes),
            "etag": f'"{found.digest}"',
        },
    )
