"""When the message of a row that waits is sent once more.

A message is lost rarely; but behind a job of hours every row that waits would fill the broker with
copies of its own. A row that met an outage is held back, from copies that are under way too.
"""

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from core.db import clock

# after 1, 2, 4, then always 8 intervals
_LONGEST_DOUBLING = 3


def is_due(not_before: sa.ColumnElement[datetime | None] | Any) -> sa.ColumnElement[bool]:
    """Give the condition that a row is not held back.

    Args:
        not_before: Column with the moment until which it is.

    Returns:
        An SQL condition.
    """
    return sa.or_(not_before.is_(None), not_before <= clock.now())


def held_back(seconds: float | None) -> dict[str, Any]:
    """Give the changes that let a queued row be taken only in a while.

    Args:
        seconds: How long; None: it may be taken at once.

    Returns:
        Values of an update. A row that is held back counts as unsent, so that the first sweep
        after that moment sends it.
    """
    if seconds is None:
        return {"not_before": None, "sent_at": clock.now(), "sends": 1}
    return {"not_before": clock.later(seconds), "sent_at": None, "sends": 0}


def wait_after_outage(attempt: int, resend_after_seconds: float) -> float:
    """Tell how long to wait before the next attempt when what everybody needs is away.

    Args:
        attempt: The one that met the outage, from 1.
        resend_after_seconds: The first wait.

    Returns:
        Seconds: 1, 2, 4, then always 8 intervals.
    """
    return resend_after_seconds * 2.0 ** min(attempt - 1, _LONGEST_DOUBLING)


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
