"""``/keys``: API keys of the caller's tenant."""

from fastapi import APIRouter

from app.dependencies import Admin, After, GuardedRoute, Id, Limit, PartsDep, ReadDep, UnitDep
from app.schemas.errors import JSON_BODY, error_answers
from app.schemas.keys import KeyAnswer, KeyCreate, NewKeyAnswer
from app.schemas.shared import Deleted, Page
from core.db import tenants
from core.db.models import ApiKey

router = APIRouter(prefix="/keys", tags=["keys"], route_class=GuardedRoute)


@router.post(
    "",
    status_code=201,
    summary="Create a key",
    response_model=NewKeyAnswer,
    responses=error_answers(*JSON_BODY),
)
def create_key(body: KeyCreate, caller: Admin, unit: UnitDep) -> NewKeyAnswer:
    """Create an API key. `key` is shown this once; only its hash is stored."""
    made = tenants.create_key(
        unit.session,
        caller.tenant_id,
        name=body.name,
        scopes=body.scopes,
        expires_at=body.expires_at,
    )
    unit.session.refresh(made.row)
    return NewKeyAnswer(**as_answer(made.row).model_dump(), key=made.secret)


@router.get("", summary="List keys", response_model=Page[KeyAnswer], responses=error_answers())
def list_keys(
    caller: Admin, session: ReadDep, limit: Limit = 20, after: After = None
) -> Page[KeyAnswer]:
    """List your keys, newest first, revoked ones too, without their secret part."""
    page = tenants.list_keys(session, caller.tenant_id, limit=limit, after=after)
    return Page.of([as_answer(row) for row in page.items], has_more=page.has_more)


@router.delete(
    "/{key_id}",
    summary="Revoke a key",
    response_model=Deleted,
    responses=error_answers("not_found"),
)
def revoke_key(key_id: Id, caller: Admin, unit: UnitDep, parts: PartsDep) -> Deleted:
    """Make a key invalid for good: at once here, within a second in every other api process."""
    tenants.revoke_key(unit.session, caller.tenant_id, key_id)
    unit.then(parts.callers.forget_all)
    return Deleted(id=key_id, object="key")


def as_answer(row: ApiKey) -> KeyAnswer:
    """Shape a row for the user.

    Args:
        row: The key.

    Returns:
        What is shown of it.
    """
    return KeyAnswer.model_validate(row, from_attributes=True)
