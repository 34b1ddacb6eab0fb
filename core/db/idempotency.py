"""One wish, one row: creation that may be repeated.

Two ways in which a caller repeats itself: with an ``Idempotency-Key``, or (the ``openai`` client)
by sending the same body again within moments. Both are decided in the transaction that would
insert.
"""

import hashlib
import json
from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db import clock
from core.db.locks import lock_name
from core.db.models import Adapter, Batch, Dataset, File, Job, Sweep, WebhookEndpoint
from core.errors import Conflict

Row = TypeVar("Row", Adapter, Batch, Dataset, File, Job, Sweep, WebhookEndpoint)

DUPLICATE_WINDOW_SECONDS = 120.0
"""Longer than any client's retries, shorter than a person who wants the same thing twice."""


def digest_request(payload: object) -> str:
    """Name a request body by its content.

    Args:
        payload: Anything that JSON holds.

    Returns:
        ``sha256:`` and 64 hex digits; equal for bodies that differ only in the order of keys.
    """
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def find_by_key(
    session: Session, kind: type[Row], *, tenant_id: str, key: str, request_digest: str | None
) -> Row | None:
    """Find what an earlier request with the same Idempotency-Key made.

    Args:
        session: An open session.
        kind: The table.
        tenant_id: Whose keys.
        key: The Idempotency-Key.
        request_digest: Of the present body.

    Returns:
        The row, or None when the key is new.

    Raises:
        Conflict: The key was used with another body, or what it made was deleted.
    """
    query = sa.select(kind).where(kind.tenant_id == tenant_id, kind.idempotency_key == key)
    row: Row | None = session.scalars(query).one_or_none()
    if row is not None and row.request_digest != request_digest:
        message = f"Idempotency-Key {key!r} was used before with another body; choose a new one"
        raise Conflict(message, code="idempotency_mismatch", param="Idempotency-Key")
    if row is not None and getattr(row, "deleted_at", None) is not None:
        message = f"what Idempotency-Key {key!r} made, {row.id}, was deleted; choose a new one"
        raise Conflict(message, param="Idempotency-Key")
    return row


def find_recent(
    session: Session,
    kind: type[Row],
    *conditions: sa.ColumnElement[bool],
    tenant_id: str,
    request_digest: str,
    window_seconds: float | None = DUPLICATE_WINDOW_SECONDS,
) -> Row | None:
    """Find the newest row that the same body made before, without a key.

    Args:
        session: An open session.
        kind: The table.
        *conditions: What the row must also fulfil.
        tenant_id: Whose rows.
        request_digest: Of the present body.
        window_seconds: How long ago at most; None for any time.

    Returns:
        The row, or None.
    """
    query = (
        sa.select(kind)
        .where(
            kind.tenant_id == tenant_id,
            kind.request_digest == request_digest,
            kind.idempotency_key.is_(None),
            *conditions,
        )
        .order_by(kind.id.desc())
        .limit(1)
    )
    if window_seconds is not None:
        query = query.where(kind.created_at > clock.later(-window_seconds))
    row: Row | None = session.scalars(query).one_or_none()
    return row


def create_once(
    session: Session,
    kind: type[Row],
    make: Callable[[], Row],
    *conditions: sa.ColumnElement[bool],
    tenant_id: str,
    idempotency_key: str | None,
    request_digest: str | None,
    window_seconds: float | None = DUPLICATE_WINDOW_SECONDS,
) -> tuple[Row, bool]:
    """Make a row unless the same wish has made it already.

    Args:
        session: A writing session.
        kind: The table.
        make: Inserts the row.
        *conditions: What an earlier row must fulfil to stand for this wish when there is no key.
        tenant_id: Whose rows.
        idempotency_key: The caller's key, if any.
        request_digest: Of the body; None switches the search without a key off.
        window_seconds: How long an equal body without a key is the same wish; None for ever.

    Returns:
        The row, and whether it is new.
    """
    wish = idempotency_key or request_digest
    if wish is None:
        return make(), True
    # two requests at once: the second waits here until the first is committed, and then finds its
    # row
    lock_name(session, f"{kind.__tablename__}/{tenant_id}/{wish}")
    found: Row | None = None
    if idempotency_key is not None:
        found = find_by_key(
            session, kind, tenant_id=tenant_id, key=idempotency_key, request_digest=request_digest
        )
    elif request_digest is not None:
        found = find_recent(
            session,
            kind,
            *conditions,
            tenant_id=tenant_id,
            request_digest=request_digest,
            window_seconds=window_seconds,
        )
    return (found, False) if found is not None else (make(), True)


def insert_once(
    session: Session,
    row: Row,
    *conditions: sa.ColumnElement[bool],
    window_seconds: float | None = DUPLICATE_WINDOW_SECONDS,
) -> tuple[Row, bool]:
    """Insert a row, which carries its tenant, key and digest, unless its wish has made one already.

    Args:
        session: A writing session.
        row: Not in the session yet.
        *conditions: As of ``create_once``.
        window_seconds: As of ``create_once``.

    Returns:
        The row, or the earlier one, and whether it is new.
    """

    def make() -> Row:
        session.add(row)
        session.flush()
        session.refresh(row)
        return row

    return create_once(
        session,
        type(row),
        make,
        *conditions,
        tenant_id=row.tenant_id,
        idempotency_key=row.idempotency_key,
        request_digest=row.request_digest,
        window_seconds=window_seconds,
    )
