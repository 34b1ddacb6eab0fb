"""Locks that last until the transaction ends.

SQLite needs none: a writing transaction there is alone from its beginning.
"""

import hashlib

import sqlalchemy as sa
from sqlalchemy.orm import Session


def lock_name(session: Session, name: str) -> None:
    """Wait until no other transaction holds a name, then hold it until the end of this one.

    Args:
        session: A writing session.
        name: Anything; take several in sorted order.
    """
    if session.get_bind().dialect.name != "postgresql":
        return
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
    session.execute(sa.select(sa.func.pg_advisory_xact_lock(number)))
