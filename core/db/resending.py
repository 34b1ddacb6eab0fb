"""When the message of a row that waits is sent once more.

A message is lost rarely; but behind a job of hours every row that waits would fill the broker with
copies of its own.
"""

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from core.db import clock

# after 1, 2, 4, then always 8 intervals
_LONGEST_DOUBLING = 3


def is_overdue(
    sends: sa.ColumnElement[int] | Any,
    sent_at: sa.ColumnElement[datetime | None] | Any,
    resend_after_seconds: float,
) -> sa.ColumnElement[bool]:
    """Give the condition that a message has been under way for too long.

    Args:
        sends: Column with the messages sent so far.
        sent_at: Column with the moment of the last one.
        resend_after_seconds: How long the first message may take.

    Returns:
        An SQL condition; true where none was sent at all.
    """
    waits = [
        sa.and_(
            sends <= doubling + 1 if doubling < _LONGEST_DOUBLING else sa.true(),
            sent_at < clock.later(-resend_after_seconds * 2**doubling),
        )
        for doubling in range(_LONGEST_DOUBLING + 1)
    ]
    return sa.or_(sent_at.is_(None), *waits)
