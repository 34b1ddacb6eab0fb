"""Aliases: point them to adapters, move them back, show where they pointed."""

from app.schemas.aliases import (
    AliasAnswer,
    AliasHistory,
    AliasMoveAnswer,
    AliasPut,
    AliasRollback,
)
from app.services import gates
from core.db import Page, Session, adapters, aliases
from core.db.models import Adapter, Alias
from core.errors import Conflict, NotFound


def put(session: Session, *, tenant_id: str, name: str, asked: AliasPut) -> AliasAnswer:
    """Point an alias to an adapter, making it when it is new; asked again, nothing changes.

    Args:
        session: A writing session.
        tenant_id: Who asks.
        name: The alias.
        asked: Where to, and on what condition.

    Returns:
        The alias as it is now.
    """
    present = aliases.hold(session, tenant_id, name)
    target = adapters.resolve(session, tenant_id, asked.adapter_id)
    if present is None or present.adapter_id != target.id:
        # a repeated request finds its wish fulfilled, whatever it expected the first time
        _check_expected(session, tenant_id, present, asked)
        gate = None
        if asked.gate is not None and present is not None:
            before = adapters.get(session, tenant_id, present.adapter_id)
            gate = gates.judge(session, before, target, asked.gate)
        aliases.move(session, tenant_id, name, target.id, gate=gate)
    return as_answer(aliases.get(session, tenant_id, name))


def roll_back(session: Session, *, tenant_id: str, name: str, asked: AliasRollback) -> AliasAnswer:
    """Point an alias to where it pointed before.

    Args:
        session: A writing session.
        tenant_id: Who asks.
        name: The alias.
        asked: How far back, and on what condition.

    Returns:
        The alias as it is now.
    """
    aliases.hold(session, tenant_id, name)
    present = aliases.get(session, tenant_id, name)
    _check_expected(session, tenant_id, present.row, asked)
    found = aliases.find_rollback(session, tenant_id, name, revision=asked.revision)
    if found.adapter_id is not None:
        aliases.move(session, tenant_id, name, found.adapter_id, restores=found.revision)
    return as_answer(aliases.get(session, tenant_id, name))


def with_history(
    session: Session, *, tenant_id: str, name: str, limit: int, before: int | None
) -> AliasHistory:
    """Show an alias and its moves.

    Args:
        session: To read with.
        tenant_id: Who asks.
        name: The alias.
        limit: How many moves at most.
        before: Only moves before this revision.

    Returns:
        Both; the moves newest first.
    """
    shown = as_answer(aliases.get(session, tenant_id, name))
    page = aliases.history(session, tenant_id, name, limit=limit, before=before)
    return AliasHistory(**dict(shown), history=_as_moves(page), history_has_more=page.has_more)


def as_answer(shown: aliases.Shown) -> AliasAnswer:
    """Shape an alias for the user.

    Args:
        shown: The alias and its adapter.

    Returns:
        What is shown of it.

    Raises:
        LookupError: The adapter has no row, which a foreign key forbids.
    """
    alias: Alias = shown.row
    if shown.adapter is None:
        raise LookupError(alias.adapter_id)
    return AliasAnswer(
        id=alias.id,
        name=alias.name,
        adapter_id=alias.adapter_id,
        adapter=_reference(shown.adapter),
        adapter_digest=shown.adapter.digest,
        revision=alias.revision,
        created_at=alias.created_at,
        updated_at=alias.updated_at,
    )


def _as_moves(page: Page[aliases.Shown]) -> list[AliasMoveAnswer]:
    return [
        AliasMoveAnswer(
            revision=move.row.revision,
            action=move.row.action,
            adapter_id=move.row.adapter_id,
            adapter=None if move.adapter is None else _reference(move.adapter),
            adapter_deleted=move.adapter is not None and move.adapter.deleted_at is not None,
            previous_adapter_id=move.row.previous_adapter_id,
            restored_revision=move.row.restored_revision,
            gate=move.row.gate,
            created_at=move.row.created_at,
        )
        for move in page.items
    ]


def _check_expected(
    session: Session, tenant_id: str, present: Alias | None, asked: AliasPut | AliasRollback
) -> None:
    if "expected_adapter_id" not in asked.model_fields_set:
        return
    points_to = None if present is None else present.adapter_id
    if points_to != _find(session, tenant_id, asked.expected_adapter_id):
        where = "does not exist" if points_to is None else f"points to adapter {points_to}"
        wanted = asked.expected_adapter_id or "nothing (no such alias)"
        raise Conflict(
            f"the alias {where}, and {wanted} was expected; look at it and decide again",
            code="alias_moved",
            param="expected_adapter_id",
        )


def _find(session: Session, tenant_id: str, reference: str | None) -> str | None:
    if reference is None:
        return None
    try:
        return adapters.resolve(session, tenant_id, reference).id
    except NotFound:
        return reference  # a deleted adapter is where no alias points


def _reference(adapter: Adapter) -> str:
    return f"{adapter.name}@{adapter.version}"
