"""Aliases: names that point to an adapter and can be moved; every move stays in the history.

A mover holds the alias's name from reading it to writing it, so moves of one alias come one after
the other, whatever happens between (a gate): the last one wins and all are in the history. Whoever
has resolved an alias before a move keeps what it found.
"""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db import adapters, clock, names
from core.db.models import Adapter, Alias, AliasMove
from core.db.pages import Page, refuse_cursor, take_page
from core.errors import Conflict, NotFound
from core.ids import is_id, new_id
from core.states import AliasAction

_KIND = "als"
"""Ids of aliases begin so."""


@dataclass(frozen=True, slots=True)
class Shown:
    """An alias, or one of its moves, with the adapter that it names.

    Attributes:
        row: The alias or the move.
        adapter: Where it points, or pointed: may be deleted; None for the end of the alias.
    """

    row: Any
    adapter: Adapter | None


def hold(session: Session, tenant_id: str, name: str) -> Alias | None:
    """Read an alias and keep other movers waiting until the transaction ends.

    Args:
        session: A writing session.
        tenant_id: Whose alias.
        name: Its name.

    Returns:
        The alias; None when there is none, and nobody can make one before this transaction ends.
    """
    names.hold(session, tenant_id, name)
    return session.scalars(_named(tenant_id, name)).one_or_none()


def get(session: Session, tenant_id: str, name: str) -> Shown:
    """Read an alias.

    Args:
        session: An open session.
        tenant_id: Who asks.
        name: Its name.

    Returns:
        The alias with its adapter.

    Raises:
        NotFound: The tenant has no such alias.
    """
    alias = session.scalars(_named(tenant_id, name)).one_or_none()
    if alias is None:
        message = f"there is no alias {name!r}; GET /aliases lists yours"
        raise NotFound(message, code="alias_not_found", param="name")
    return Shown(alias, session.get(Adapter, alias.adapter_id))


def list_page(
    session: Session,
    tenant_id: str,
    *,
    adapter_id: str | None = None,
    limit: int = 20,
    after: str | None = None,
) -> Page[Shown]:
    """List a tenant's aliases, newest first.

    Args:
        session: An open session.
        tenant_id: Who asks.
        adapter_id: Only those that point to it.
        limit: Rows of a page.
        after: Last id of the page before.

    Returns:
        One page.
    """
    query = sa.select(Alias).where(Alias.tenant_id == tenant_id)
    if adapter_id is not None:
        query = query.where(Alias.adapter_id == adapter_id)
    if after is not None:
        # rows of deleted aliases are gone, and who deletes while reading pages still goes on
        if not is_id(_KIND, after):
            refuse_cursor(repr(after))
        query = query.where(Alias.id < after)
    page = take_page(session, query.order_by(Alias.id.desc()), limit=limit)
    return Page(_with_adapters(session, page.items), page.has_more)


def names_of(session: Session, tenant_id: str, adapter_ids: list[str]) -> dict[str, list[str]]:
    """Find the aliases that point to some adapters.

    Args:
        session: An open session.
        tenant_id: Who asks.
        adapter_ids: The adapters.

    Returns:
        Names in order, by adapter id; an adapter without an alias is not in it.
    """
    query = (
        sa.select(Alias.adapter_id, Alias.name)
        .where(Alias.tenant_id == tenant_id, Alias.adapter_id.in_(adapter_ids))
        .order_by(Alias.name)
    )
    found: dict[str, list[str]] = {}
    for adapter_id, name in session.execute(query):
        found.setdefault(adapter_id, []).append(name)
    return found


def move(
    session: Session,
    tenant_id: str,
    name: str,
    adapter_id: str,
    *,
    gate: dict[str, Any] | None = None,
    restores: int | None = None,
) -> Alias:
    """Point an alias to an adapter, making it when it is new.

    Args:
        session: A writing session.
        tenant_id: Whose alias.
        name: Its name.
        adapter_id: Where to; the tenant's own (else ``NotFound``), and it cannot be deleted before
            this transaction ends.
        gate: What a gate found, for the history.
        restores: The revision that a rollback goes back to.

    Returns:
        The alias; one that points there already is left as it is. For a new one ``Conflict`` (code
        ``name_taken``) goes through when the name means something already.
    """
    alias = hold(session, tenant_id, name)
    if alias is not None and alias.adapter_id == adapter_id:
        return alias
    before = None if alias is None else alias.adapter_id
    adapters.hold(session, tenant_id, adapter_id)
    if alias is None:
        names.check_for_alias(session, tenant_id, name)
    action = AliasAction.SET if restores is None else AliasAction.ROLLBACK
    revision = _note(
        session, tenant_id, name, action, before=before, to=adapter_id, gate=gate, restores=restores
    )
    if alias is None:
        alias = Alias(id=new_id(_KIND), tenant_id=tenant_id, name=name)
        session.add(alias)
    alias.adapter_id, alias.revision, alias.updated_at = adapter_id, revision, clock.now()
    session.flush()
    session.refresh(alias)
    return alias


def find_rollback(
    session: Session, tenant_id: str, name: str, *, revision: int | None = None
) -> AliasMove:
    """Find the move that a rollback undoes to.

    Args:
        session: A session that holds the alias.
        tenant_id: Whose alias.
        name: Its name.
        revision: The one to go back to; None: the one before the present. A rollback stands where
            the revision that it restored stood, so that a second one goes further back.

    Returns:
        The move.

    Raises:
        Conflict: There is none, or its adapter is deleted (code ``nothing_to_roll_back``).
    """
    alias = get(session, tenant_id, name).row
    moves = _moves(tenant_id, name).where(AliasMove.adapter_id.is_not(None))
    if revision is not None:
        query = moves.where(AliasMove.revision == revision)
    else:
        present = session.scalars(moves.where(AliasMove.revision == alias.revision)).one()
        place = present.restored_revision or present.revision
        query = moves.where(
            AliasMove.revision < place, AliasMove.adapter_id != alias.adapter_id
        ).order_by(AliasMove.revision.desc())
    found = session.scalars(query.limit(1)).one_or_none()
    if found is None:
        what = "no earlier adapter" if revision is None else f"no revision {revision}"
        message = f"the alias {name!r} has {what} to go back to; GET /aliases/{name} lists all"
        raise Conflict(message, code="nothing_to_roll_back", param="revision")
    target = session.get(Adapter, found.adapter_id)
    if target is None or target.deleted_at is not None:
        message = (
            f"revision {found.revision} of the alias {name!r} pointed to adapter "
            f"{found.adapter_id}, which is deleted; name another revision"
        )
        raise Conflict(message, code="nothing_to_roll_back", param="revision")
    return found


def remove(session: Session, tenant_id: str, name: str) -> Alias:
    """Delete an alias; its history stays, and goes on when the alias is made again.

    Args:
        session: A writing session.
        tenant_id: Who asks.
        name: Its name.

    Returns:
        The row that is gone.
    """
    hold(session, tenant_id, name)
    alias: Alias = get(session, tenant_id, name).row
    before = alias.adapter_id
    _note(session, tenant_id, name, AliasAction.DELETE, before=before, to=None)
    session.delete(alias)
    session.flush()
    return alias


def history(
    session: Session, tenant_id: str, name: str, *, limit: int = 20, before: int | None = None
) -> Page[Shown]:
    """List the moves of an alias, newest first.

    Args:
        session: An open session.
        tenant_id: Who asks.
        name: Its name.
        limit: How many at most.
        before: Only revisions below this one.

    Returns:
        One page; empty for a name that never was an alias.
    """
    query = _moves(tenant_id, name).order_by(AliasMove.revision.desc())
    if before is not None:
        query = query.where(AliasMove.revision < before)
    page = take_page(session, query, limit=limit)
    return Page(_with_adapters(session, page.items), page.has_more)


def _note(
    session: Session,
    tenant_id: str,
    name: str,
    action: AliasAction,
    *,
    before: str | None,
    to: str | None,
    gate: dict[str, Any] | None = None,
    restores: int | None = None,
) -> int:
    """Write a line of the history and give its number."""
    highest = session.scalar(
        sa.select(sa.func.max(AliasMove.revision)).where(
            AliasMove.tenant_id == tenant_id, AliasMove.name == name
        )
    )
    revision = (highest or 0) + 1
    session.add(
        AliasMove(
            tenant_id=tenant_id,
            name=name,
            revision=revision,
            action=action,
            adapter_id=to,
            previous_adapter_id=before,
            restored_revision=restores,
            gate=gate,
        )
    )
    return revision


def _named(tenant_id: str, name: str) -> sa.Select[Alias]:
    return sa.select(Alias).where(Alias.tenant_id == tenant_id, Alias.name == name)


def _moves(tenant_id: str, name: str) -> sa.Select[AliasMove]:
    return sa.select(AliasMove).where(AliasMove.tenant_id == tenant_id, AliasMove.name == name)


def _with_adapters(session: Session, rows: list[Any]) -> list[Shown]:
    wanted = {row.adapter_id for row in rows if row.adapter_id is not None}
    found = {
        adapter.id: adapter
        for adapter in session.scalars(sa.select(Adapter).where(Adapter.id.in_(wanted)))
    }
    return [Shown(row, found.get(row.adapter_id)) for row in rows]
