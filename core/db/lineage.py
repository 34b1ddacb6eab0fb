"""Where an adapter comes from, and what was made from it. Deleted adapters are shown: rows stay."""

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from core.db.models import Adapter
from core.db.pages import Page, take_page


def list_ancestors(
    session: Session, tenant_id: str, adapter_id: str, *, limit: int = 100
) -> Page[Adapter]:
    """List the adapters that an adapter was continued from, its parent first.

    Args:
        session: An open session.
        tenant_id: Who asks.
        adapter_id: Whose ancestors.
        limit: How many at most.

    Returns:
        One page; empty for an adapter that began from its base.
    """
    chain = (
        sa.select(Adapter.id, Adapter.parent_adapter_id, sa.literal(0).label("generation"))
        .where(Adapter.tenant_id == tenant_id, Adapter.id == adapter_id)
        .cte("chain", recursive=True)
    )
    parent = aliased(Adapter)
    chain = chain.union_all(
        sa.select(parent.id, parent.parent_adapter_id, chain.c.generation + 1)
        .join(chain, parent.id == chain.c.parent_adapter_id)
        # one more than the page, to know whether there are more
        .where(parent.tenant_id == tenant_id, chain.c.generation <= limit)
    )
    query = (
        sa.select(Adapter)
        .join(chain, Adapter.id == chain.c.id)
        .where(chain.c.generation > 0)
        .order_by(chain.c.generation)
    )
    return take_page(session, query, limit=limit)


def list_children(
    session: Session, tenant_id: str, adapter_id: str, *, limit: int = 100
) -> Page[Adapter]:
    """List the adapters that were continued from an adapter, newest first.

    Args:
        session: An open session.
        tenant_id: Who asks.
        adapter_id: Whose children.
        limit: How many at most.

    Returns:
        One page.
    """
    query = (
        sa.select(Adapter)
        .where(Adapter.tenant_id == tenant_id, Adapter.parent_adapter_id == adapter_id)
        .order_by(Adapter.id.desc())
    )
    return take_page(session, query, limit=limit)
