"""A tenant's own rows: one by its id, or a page of them.

What another tenant has does not exist, and neither does what was deleted.
"""

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db.models import (
    Adapter,
    ApiKey,
    Batch,
    Dataset,
    Estimate,
    File,
    Job,
    Sweep,
    Upload,
    WebhookEndpoint,
)
from core.db.pages import Page, refuse_cursor, take_page
from core.errors import NotFound

Row = TypeVar(
    "Row", Adapter, ApiKey, Batch, Dataset, Estimate, File, Job, Sweep, Upload, WebhookEndpoint
)


class Lock(Enum):
    """How Postgres keeps a row until the transaction ends; on SQLite there is one writer anyway."""

    SHARE = "share"
    """Nobody changes or deletes it; others may hold it so too."""
    CHANGE = "change"
    """Nobody else holds it in any way; rows that refer to it may still be made."""


class _Absence(NamedTuple):
    noun: str
    code: str
    param: str | None


_ABSENT: Mapping[type, _Absence] = MappingProxyType(
    {
        ApiKey: _Absence("API key", "not_found", None),
        Batch: _Absence("batch", "batch_not_found", "batch_id"),
        Dataset: _Absence("data set", "dataset_not_found", "dataset_id"),
        Estimate: _Absence("estimate", "estimate_not_found", "estimate_id"),
        File: _Absence("file", "file_not_found", "file_id"),
        Job: _Absence("job", "job_not_found", "job_id"),
        Sweep: _Absence("sweep", "sweep_not_found", "sweep_id"),
        Upload: _Absence("upload", "upload_not_found", "upload_id"),
        WebhookEndpoint: _Absence(
            "webhook endpoint", "webhook_endpoint_not_found", "webhook_endpoint_id"
        ),
    }
)


def select(table: type[Row], tenant_id: str) -> sa.Select[Row]:
    """Select what a tenant has of one table.

    Args:
        table: Which one.
        tenant_id: Whose rows.

    Returns:
        The query, without an order.
    """
    query = sa.select(table).where(table.tenant_id == tenant_id)
    deleted_at = getattr(table, "deleted_at", None)
    return query if deleted_at is None else query.where(deleted_at.is_(None))


def get(
    session: Session, table: type[Row], tenant_id: str, row_id: str, *, lock: Lock | None = None
) -> Row:
    """Read one row as it is in the database now.

    Args:
        session: An open session; a writing one for a lock.
        table: Where it is; any but adapters, which have names too.
        tenant_id: Who asks.
        row_id: Which one.
        lock: How to keep it until the transaction ends.

    Returns:
        The row.

    Raises:
        NotFound: The tenant has none such.
    """
    query = select(table, tenant_id).where(table.id == row_id)
    if lock is not None:
        query = query.with_for_update(read=lock is Lock.SHARE, key_share=lock is Lock.CHANGE)
    row = session.scalars(query.execution_options(populate_existing=True)).one_or_none()
    if row is None:
        noun, code, param = _ABSENT[table]
        message = f"no {noun} {row_id!r}"
        raise NotFound(message, code=code, param=param)
    return row


def matching(*wanted: tuple[Any, object | None]) -> list[sa.ColumnElement[bool]]:
    """Make conditions of the filters of a list.

    Args:
        *wanted: Columns, and the value that each must have; None for any.

    Returns:
        A condition for each value.
    """
    return [column == value for column, value in wanted if value is not None]


def list_page(
    session: Session,
    table: type[Row],
    tenant_id: str,
    *conditions: sa.ColumnElement[bool],
    limit: int,
    after: str | None,
    oldest_first: bool = False,
) -> Page[Row]:
    """List a tenant's rows by id, which is by time.

    Args:
        session: An open session.
        table: Of rows that stay, also what was deleted: a cursor into them is always found.
        tenant_id: Who asks.
        *conditions: What the rows must fulfil.
        limit: Rows of a page; cut to 1 … ``pages.MAX_LIMIT``.
        after: Last id of the page before; None for the first page. ``BadInput`` goes through for
            one that names no row of the tenant, of whatever status: it may have left the list.
        oldest_first: Else newest first.

    Returns:
        One page.
    """
    query = select(table, tenant_id).where(*conditions)
    if after is not None:
        own = sa.select(table.id).where(table.id == after, table.tenant_id == tenant_id)
        if session.scalars(own).one_or_none() is None:
            refuse_cursor(repr(after))
        query = query.where(table.id > after if oldest_first else table.id < after)
    order = table.id.asc() if oldest_first else table.id.desc()
    return take_page(session, query.order_by(order), limit=limit)
