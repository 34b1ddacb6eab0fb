"""Files that are kept as they came: requests of batches and their answers.

Under ``/v1`` data sets are files too; the one list of both is made here.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db import clock, idempotency, owned
from core.db.models import Batch, Dataset, File
from core.db.pages import MAX_LIMIT, Page, refuse_cursor
from core.errors import Conflict
from core.ids import new_id
from core.states import BATCH_ENDED

BATCH = "batch"
BATCH_OUTPUT = "batch_output"

_PREFIXES: Mapping[type, str] = MappingProxyType({Dataset: "ds", File: "file"})

Own = TypeVar("Own", Dataset, File)


def new_file_id() -> str:
    """Make an id before the row exists, so that the bytes can lie under it first.

    Returns:
        ``file_…``.
    """
    return new_id("file")


def create_once(session: Session, row: File) -> tuple[File, bool]:
    """Insert a file unless the same bytes under the same name are there.

    Args:
        session: A writing session.
        row: The file, with ``request_digest`` and perhaps ``idempotency_key``.

    Returns:
        The file, and whether it is new.
    """
    return idempotency.insert_once(session, row, File.deleted_at.is_(None), window_seconds=None)


def get(session: Session, tenant_id: str, file_id: str) -> File:
    """Read a file.

    Args:
        session: An open session.
        tenant_id: Who asks.
        file_id: Which one.

    Returns:
        The file; ``NotFound`` when the tenant has none such, or has deleted it.
    """
    return owned.get(session, File, tenant_id, file_id)


def hold(session: Session, tenant_id: str, file_id: str) -> File:
    """Read a file, and keep it from being deleted until the transaction ends.

    Args:
        session: A writing session.
        tenant_id: Who asks.
        file_id: Which one.

    Returns:
        The file; ``NotFound`` when the tenant has none such, or has deleted it.
    """
    return owned.get(session, File, tenant_id, file_id, lock=owned.Lock.SHARE)


def mark_deleted(session: Session, tenant_id: str, file_id: str) -> File:
    """Delete a file; its row stays for the batches that name it.

    Args:
        session: A writing session.
        tenant_id: Who asks.
        file_id: Which one.

    Returns:
        The row, for the key of its object.

    Raises:
        Conflict: A batch that has not ended needs it.
    """
    # whoever holds it to make a batch is waited for, and the batch then found
    row = owned.get(session, File, tenant_id, file_id, lock=owned.Lock.CHANGE)
    query = (
        sa.select(Batch.id)
        .where(Batch.input_file_id == file_id, Batch.status.not_in(BATCH_ENDED))
        .limit(1)
    )
    busy = session.scalars(query).one_or_none()
    if busy is not None:
        message = f"batch {busy} needs file {file_id}; cancel it or wait"
        raise Conflict(message, code="file_in_use", param="file_id")
    session.execute(
        sa.update(File)
        .where(File.id == file_id, File.tenant_id == tenant_id)
        .values(deleted_at=clock.now())
        .execution_options(synchronize_session=False)
    )
    return row


def list_page(
    session: Session,
    tenant_id: str,
    *,
    purpose: str | None = None,
    limit: int = 20,
    after: str | None = None,
    oldest_first: bool = False,
) -> Page[Dataset | File]:
    """List data sets and files together by the time in their ids.

    Args:
        session: An open session.
        tenant_id: Who asks.
        purpose: ``fine-tune`` for data sets alone, or that of files; None for all.
        limit: Rows of a page.
        after: Last id of the page before.
        oldest_first: Else newest first.

    Returns:
        One page.
    """
    limit = max(1, min(limit, MAX_LIMIT))
    moment = None if after is None else _moment_of(session, tenant_id, after)
    rows: list[Dataset | File] = []
    if purpose in {None, "fine-tune"}:
        rows += _some(session, Dataset, tenant_id, (), limit, moment, oldest_first=oldest_first)
    if purpose != "fine-tune":
        wanted = () if purpose is None else (File.purpose == purpose,)
        rows += _some(session, File, tenant_id, wanted, limit, moment, oldest_first=oldest_first)
    rows.sort(key=lambda row: _time_part(row.id), reverse=not oldest_first)
    return Page(rows[:limit], len(rows) > limit)


def _some(
    session: Session,
    table: type[Own],
    tenant_id: str,
    conditions: tuple[sa.ColumnElement[bool], ...],
    limit: int,
    moment: str | None,
    *,
    oldest_first: bool,
) -> list[Own]:
    """As many rows of one table behind a moment as a page may need, and one more."""
    query = owned.select(table, tenant_id).where(*conditions)
    if moment is not None:
        cursor = f"{_PREFIXES[table]}_{moment}"
        query = query.where(table.id > cursor if oldest_first else table.id < cursor)
    order = table.id.asc() if oldest_first else table.id.desc()
    return list(session.scalars(query.order_by(order).limit(limit + 1)))


def _moment_of(session: Session, tenant_id: str, after: str) -> str:
    """What of a cursor is of use in both tables, once it is sure that it names a row of one."""
    for table in (Dataset, File):
        own = sa.select(table.id).where(table.id == after, table.tenant_id == tenant_id)
        if session.scalars(own).one_or_none() is not None:
            return _time_part(after)
    refuse_cursor(repr(after))


def _time_part(row_id: str) -> str:
    return row_id.rpartition("_")[2]
