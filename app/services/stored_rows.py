"""Rows that speak for objects: the bytes are stored first, and go again when no row is made."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from app.services.parts import Parts
from core.db import Session
from core.db.models import Dataset, File
from core.errors import Conflict
from core.storage import remove_objects

Row = TypeVar("Row", Dataset, File)

Beside = Callable[[Session, str], object]
"""What else is written in the transaction that makes a row, told the id of that row, or of the one
that was there. What it raises undoes both."""


def write_row(
    parts: Parts,
    keys: Sequence[str],
    make: Callable[[Session], tuple[Row, bool]],
    beside: Beside | None,
) -> tuple[Row, bool]:
    """Write the row of objects that are stored, or remove them when another row stands for them.

    Args:
        parts: Where both are.
        keys: The objects.
        make: Gives the row, and whether it is new.
        beside: What is written with the row.

    Returns:
        What ``make`` gave.

    Raises:
        Conflict: The caller's key was used otherwise, or ``beside`` refused it.
    """
    try:
        with parts.database.write() as session:
            row, is_new = make(session)
            if beside is not None:
                beside(session, row.id)
    except Conflict:
        # no row was made; after an outage nobody knows, and what is left is found as an orphan
        remove_objects(parts.store, keys)
        raise
    if not is_new:
        remove_objects(parts.store, keys)
    return row, is_new
