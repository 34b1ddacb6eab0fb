"""Lists in pages, newest first, by id.

Ids sort by time, so a page is ``id < after``: stable while rows are added, and one index step.
"""

from dataclasses import dataclass
from typing import Generic, NoReturn, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.errors import BadInput

T = TypeVar("T")

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
