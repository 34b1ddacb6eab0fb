"""``/aliases``: names that point to adapters and can be moved."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from app.dependencies import After, GuardedRoute, Id, Limit, ReadDep, Reader, UnitDep, Writer
from app.schemas.aliases import AliasAnswer, AliasHistory, AliasPut, AliasRollback
from app.schemas.errors import JSON_BODY, error_answers
from app.schemas.shared import NAME_PATTERN, Deleted, Page
from app.services import aliases as service
from core.db import adapters, aliases

router = APIRouter(prefix="/aliases", tags=["aliases"], route_class=GuardedRoute)

# a new name must be a good one; one that is only looked up may be anything harmless
NewName = Annotated[str, Path(pattern=NAME_PATTERN)]

_EXAMPLES: dict[str, Any] = {
    "move": {"summary": "Point it there", "value": {"adapter_id": "support-intents@3"}},
    "careful": {
        "summary": "Only if nobody has moved it meanwhile",
        "value": {
            "adapter_id": "support-intents@3",
            "expected_adapter_id": "support-intents@2",
        },
    },
    "gated": {
        "summary": "Only if it is not worse on the same test rows",
        "value": {"adapter_id": "support-intents@3", "gate": {"metric": "accuracy"}},
    },
}

_ROLLBACK_EXAMPLES: dict[str, Any] = {
    "before": {"summary": "To where it pointed before", "value": {}},
    "aimed": {"summary": "To a revision of the history", "value": {"revision": 3}},
}


@router.get(
    "",
    summary="List aliases",
    response_model=Page[AliasAnswer],
    responses=error_answers("adapter_not_found"),
)
def list_aliases(
    caller: Reader,
    session: ReadDep,
    adapter_id: Annotated[
        str | None,
        Query(pattern=r"^[\x20-\x7e]{1,128}$", description="Only those that point to it."),
    ] = None,
    limit: Limit = 20,
    after: After = None,
) -> Page[AliasAnswer]:
    """List your aliases, newest first."""
    if adapter_id is not None:
        adapter_id = adapters.resolve(session, caller.tenant_id, adapter_id).id
    page = aliases.list_page(
        session, caller.tenant_id, adapter_id=adapter_id, limit=limit, after=after
    )
    return Page.of([service.as_answer(row) for row in page.items], has_more=page.has_more)


@router.put(
    "/{name}",
    summary="Make or move an alias",
    response_model=AliasAnswer,
    openapi_extra={"requestBody": {"content": {"application/json": {"examples": _EXAMPLES}}}},
    responses=error_answers(
        "adapter_not_found",
        "alias_moved",
        "name_taken",
        "gate_failed",
        "gate_not_comparable",
        *JSON_BODY,
    ),
)
def put_alias(name: NewName, body: AliasPut, caller: Writer, unit: UnitDep) -> AliasAnswer:
    """Point an alias to an adapter, atomically; asked again, nothing changes.

    Requests that were resolved before go on with the adapter that they found; later ones get the
    new one. An alias cannot have the name of an adapter. With a `gate` it moves only if the new
    adapter is not worse than the present one on the test rows that both were tested on.
    """
    return service.put(unit.session, tenant_id=caller.tenant_id, name=name, asked=body)


@router.get(
    "/{name}",
    summary="Get an alias",
    response_model=AliasHistory,
    responses=error_answers("alias_not_found"),
)
def get_alias(
    name: Id,
    caller: Reader,
    session: ReadDep,
    limit: Limit = 20,
    before: Annotated[
        int | None, Query(ge=1, le=2**31 - 1, description="Only moves before this revision.")
    ] = None,
) -> AliasHistory:
    """Show where an alias points, and its moves, newest first."""
    return service.with_history(
        session, tenant_id=caller.tenant_id, name=name, limit=limit, before=before
    )


@router.post(
    "/{name}:rollback",
    summary="Roll an alias back",
    response_model=AliasAnswer,
    openapi_extra={
        "requestBody": {"content": {"application/json": {"examples": _ROLLBACK_EXAMPLES}}}
    },
    responses=error_answers(
        "alias_not_found",
        "adapter_not_found",
        "alias_moved",
        "nothing_to_roll_back",
        *JSON_BODY,
    ),
)
def roll_back_alias(
    name: Id, caller: Writer, unit: UnitDep, body: AliasRollback | None = None
) -> AliasAnswer:
    """Point an alias to where it pointed before, or to a revision of its history.

    Called again it goes one further back, so a request that may be repeated should send
    `expected_adapter_id`.
    """
    return service.roll_back(
        unit.session, tenant_id=caller.tenant_id, name=name, asked=body or AliasRollback()
    )


@router.delete(
    "/{name}",
    summary="Delete an alias",
    response_model=Deleted,
    responses=error_answers("alias_not_found"),
)
def delete_alias(name: Id, caller: Writer, unit: UnitDep) -> Deleted:
    """Delete an alias. Its adapter stays, and so does its history, should it be made again."""
    gone = aliases.remove(unit.session, caller.tenant_id, name)
    return Deleted(id=gone.id, object="alias")
