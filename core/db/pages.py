"""Lists in pages, newest first, by id.

Ids sort by time, so a page is ``id < after``: stable while rows are added, and one index step.
"""

from dataclasses import dataclass
from typing import Generic, NoReturn, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db.models import Adapter, ApiKey, Batch, Dataset, Estimate, Job, Sweep, WebhookEndpoint
from core.errors import BadInput

T = TypeVar("T")
Kept = TypeVar("Kept", Adapter, ApiKey, Batch, Dataset, Estimate, Job, Sweep, WebhookEndpoint)
"""Tables whose rows stay, also of what was deleted: a cursor into them is always found."""

MAX_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some rows of a list.

    Attributes:
        items: The rows in the order of the list.
        has_more: Whether rows follow.
    """

    items: list[T]
    has_more: bool


def start_after(
    session: Session,
    query: sa.Select[Kept],
    table: type[Kept],
    *,
    tenant_id: str,
    after: str | None,
    oldest_first: bool = False,
) -> sa.Select[Kept]:
    """Order a list and begin it behind a cursor, which one look-up by primary key makes sure of.

    Args:
        session: An open session.
        query: Rows of one table.
        table: Which one.
        tenant_id: Who asks.
        after: Last id of the page before; None for the first page.
        oldest_first: The other order.

    Returns:
        The rows behind the cursor, in order. ``BadInput`` goes through for a cursor that names no
        row of the tenant, of whatever status: it may have left the list since.
    """
    order = table.id.asc() if oldest_first else table.id.desc()
    if after is None:
        return query.order_by(order)
    own = sa.select(table.id).where(table.id == after, table.tenant_id == tenant_id)
    if session.scalars(own).one_or_none() is None:
        refuse_cursor(repr(after))
    return query.where(table.id > after if oldest_first else table.id < after).order_by(order)


def refuse_cursor(shown: str) -> NoReturn:
    """Refuse a cursor that names no row of a list.

    Args:
        shown: What it names, for the message.

    Raises:
        BadInput: Always.
    """
    raise BadInput(f"after: {shown} is not in this list; send last_id of a page", param="after")


def take_page(session: Session, query: sa.Select[T], *, limit: int) -> Page[T]:
    """Read one page.

    Args:
        session: An open session.
        query: All rows behind the cursor, in order.
        limit: Rows of the page; cut to 1 … ``MAX_LIMIT``.

    Returns:
        The page.
    """
    limit = max(1, min(limit, MAX_LIMIT))
    rows = list(session.scalars(query.limit(limit + 1)))
    return Page(rows[:limit], len(rows) > limit)
