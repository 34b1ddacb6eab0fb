"""Data sets: rows about files whose content is in storage."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db import clock, idempotency, owned
from core.db.locks import lock_name
from core.db.models import Dataset, Job, Sweep
from core.db.pages import Page
from core.errors import Conflict
from core.ids import new_id
from core.states import SWEEP_ACTIVE, TERMINAL, DatasetStatus

_WRITABLE = frozenset(
    {
        "task",
        "status",
        "reason",
        "format",
        "bytes",
        "rows",
        "sha256",
        "request",
        "splits",
        "report",
        "error",
    }
)


def new_dataset_id() -> str:
    """Make an id before the row exists, so that objects can lie under it first.

    Returns:
        ``ds_…``.
    """
    return new_id("ds")


def create(
    session: Session,
    *,
    tenant_id: str,
    name: str,
    status: DatasetStatus,
    id: str | None = None,
    idempotency_key: str | None = None,
    request_digest: str | None = None,
    **values: Any,
) -> Dataset:
    """Insert a data set; use ``create_once`` where a caller may repeat itself.

    Args:
        session: A writing session.
        tenant_id: Whose data set.
        name: What the owner calls it.
        status: ``validating``, or the outcome when validation is over already.
        id: From ``new_dataset_id``; a new one when left out.
        idempotency_key: The caller's key.
        request_digest: Digest of the request body.
        **values: Any of task, format, filename, bytes, rows, sha256, request, splits, report,
            error, reason.

    Returns:
        The data set.
    """
    row = Dataset(
        id=id or new_dataset_id(),
        tenant_id=tenant_id,
        name=name,
        status=status,
        idempotency_key=idempotency_key,
        request_digest=request_digest,
        **values,
    )
    session.add(row)
    session.flush()
    return row


def create_once(
    session: Session,
    *,
    tenant_id: str,
    idempotency_key: str | None,
    request_digest: str | None,
    **values: Any,
) -> tuple[Dataset, bool]:
    """Insert a data set unless the same request has done so already.

    Args:
        session: A writing session.
        tenant_id: Whose data set.
        idempotency_key: The caller's key; without one, an equal request is the same wish at any
            time.
        request_digest: Digest of the request body (``core.db.idempotency.digest_request``).
        **values: As for ``create``.

    Returns:
        The data set, and whether it is new.
    """
    return idempotency.create_once(
        session,
        Dataset,
        lambda: create(
            session,
            tenant_id=tenant_id,
            idempotency_key=idempotency_key,
            request_digest=request_digest,
            **values,
        ),
        *_usable(),
        tenant_id=tenant_id,
        idempotency_key=idempotency_key,
        request_digest=request_digest,
        window_seconds=None,
    )


def find_same(session: Session, tenant_id: str, request_digest: str) -> Dataset | None:
    """Find the data set that the same request, sent without a key, made at any time.

    Args:
        session: An open session.
        tenant_id: Whose data sets.
        request_digest: Digest of the request, the bytes' digest included.

    Returns:
        The data set, or None; one that is deleted or invalid does not count.
    """
    return idempotency.find_recent(
        session,
        Dataset,
        *_usable(),
        tenant_id=tenant_id,
        request_digest=request_digest,
        window_seconds=None,
    )


def get(session: Session, tenant_id: str, dataset_id: str) -> Dataset:
    """Read a data set.

    Args:
        session: An open session.
        tenant_id: Who asks.
        dataset_id: Which one.

    Returns:
        The data set; ``NotFound`` when the tenant has none such, or has deleted it.
    """
    return owned.get(session, Dataset, tenant_id, dataset_id)


def hold(session: Session, tenant_id: str, dataset_id: str) -> Dataset:
    """Read a data set, and keep it as it is until the transaction ends.

    Without that, Postgres lets a job that is made of it and its deletion, or the end of its
    validation, pass each other.

    Args:
        session: A writing session.
        tenant_id: Who asks.
        dataset_id: Which one.

    Returns:
        The data set; ``NotFound`` when the tenant has none such, or has deleted it.
    """
    return owned.get(session, Dataset, tenant_id, dataset_id, lock=owned.Lock.SHARE)


def get_for_worker(session: Session, dataset_id: str) -> Dataset | None:
    """Read a data set named by a message, which carries nothing but the id.

    Args:
        session: An open session.
        dataset_id: Which one.

    Returns:
        The data set (a deleted one too, whose jobs may still run), or None.
    """
    return session.get(Dataset, dataset_id, populate_existing=True)


def list_page(
    session: Session,
    tenant_id: str,
    *,
    status: DatasetStatus | None = None,
    task: str | None = None,
    name: str | None = None,
    limit: int = 20,
    after: str | None = None,
    oldest_first: bool = False,
) -> Page[Dataset]:
    """List a tenant's data sets, newest first unless the other order is asked for.

    Args:
        session: An open session.
        tenant_id: Who asks.
        status: Only these.
        task: Only these.
        name: Only these.
        limit: Rows of a page.
        after: Last id of the page before.
        oldest_first: The other order.

    Returns:
        One page.
    """
    wanted = owned.matching((Dataset.status, status), (Dataset.task, task), (Dataset.name, name))
    return owned.list_page(
        session, Dataset, tenant_id, *wanted, limit=limit, after=after, oldest_first=oldest_first
    )


def joined_from(
    session: Session, tenant_id: str, dataset_ids: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Find which data sets were put together to make others.

    Args:
        session: An open session.
        tenant_id: Whose data sets.
        dataset_ids: Which ones; deleted ones too.

    Returns:
        By id, the id of the data set that each split came from; those that were uploaded are left
        out.
    """
    if not dataset_ids:
        return {}
    parents = Dataset.request["joined_from"]
    query = sa.select(Dataset.id, parents).where(
        Dataset.tenant_id == tenant_id, Dataset.id.in_(dataset_ids)
    )
    return {row[0]: row[1] for row in session.execute(query) if row[1]}


def find_leakage(dataset: Dataset | None) -> dict[str, Any] | None:
    """Tell why a job must allow leakage to train on a data set.

    Args:
        dataset: With its report; None, or a data set without one, leaks nothing that is known.

    Returns:
        An error (code, message, param), or None.
    """
    leakage = ((dataset.report if dataset else None) or {}).get("leakage") or {}
    if not leakage.get("blocks"):
        return None
    message = (
        f"{leakage.get('exact_rows', 'some')} rows stand in more than one split, so the test "
        "would tell nothing; remove them, or set allow_leakage to true"
    )
    return {"code": "dataset_leakage", "message": message, "param": "dataset_id"}


def finish_validation(
    session: Session,
    dataset_id: str,
    *,
    status: DatasetStatus,
    **values: Any,
) -> bool:
    """Write the outcome of a validation, once.

    Whoever calls this also calls ``jobs.release_waiting`` in the same transaction.

    Args:
        session: A writing session.
        dataset_id: Which one.
        status: ``ready`` or ``invalid``.
        **values: Any of task, reason, format, bytes, rows, sha256, request, splits, report, error.

    Returns:
        False when another worker had finished before, whose outcome stands, or the data set was
        deleted meanwhile.

    Raises:
        TypeError: A column that validation has no business with.
    """
    unknown = set(values) - _WRITABLE
    if unknown:
        message = f"a validation cannot write {sorted(unknown)}"
        raise TypeError(message)
    statement = (
        sa.update(Dataset)
        .where(
            Dataset.id == dataset_id,
            Dataset.status == DatasetStatus.VALIDATING,
            Dataset.deleted_at.is_(None),
        )
        .values(status=status, updated_at=clock.now(), **values)
        .returning(Dataset.id)
        .execution_options(synchronize_session=False)
    )
    return session.scalars(statement).one_or_none() is not None


def sweep(session: Session, *, resend_after_seconds: float) -> list[str]:
    """Take the data sets whose validation seems forgotten, so that their messages are sent again.

    Args:
        session: A writing session.
        resend_after_seconds: How long a validation may show no sign; validating twice is harmless.

    Returns:
        Ids to send; each is given out to one caller only per interval.
    """
    lock_name(session, "datasets/sweep")
    statement = (
        sa.update(Dataset)
        .where(
            Dataset.status == DatasetStatus.VALIDATING,
            Dataset.deleted_at.is_(None),
            Dataset.updated_at < clock.later(-resend_after_seconds),
        )
        .values(updated_at=clock.now())
        .returning(Dataset.id)
        .execution_options(synchronize_session=False)
    )
    return sorted(session.scalars(statement))


def touch(session: Session, dataset_id: str, *, reason: str | None = None) -> None:
    """Tell the sweep that a validation is alive, or why it has to be done again.

    Args:
        session: A writing session.
        dataset_id: Which one.
        reason: What its owner reads until it is over; None says nothing new.
    """
    told = {} if reason is None else {"reason": reason}
    session.execute(
        sa.update(Dataset)
        .where(Dataset.id == dataset_id)
        .values(updated_at=clock.now(), **told)
        .execution_options(synchronize_session=False)
    )


def mark_deleted(session: Session, tenant_id: str, dataset_id: str) -> Dataset:
    """Delete a data set; its row stays for the jobs that name it.

    Args:
        session: A writing session.
        tenant_id: Who asks.
        dataset_id: Which one.

    Returns:
        The row, for the keys of its objects.

    Raises:
        Conflict: A job or a sweep that has not ended needs it.
    """
    # whoever holds it to make a job is waited for, and the job then found
    row = owned.get(session, Dataset, tenant_id, dataset_id, lock=owned.Lock.CHANGE)
    query = (
        sa.select(Job.id)
        .where(
            Job.dataset_id == dataset_id, Job.tenant_id == tenant_id, Job.status.not_in(TERMINAL)
        )
        .limit(1)
    )
    busy = session.scalars(query).one_or_none()
    if busy is not None:
        message = f"job {busy} needs data set {dataset_id}; cancel it or wait"
        raise Conflict(message, code="dataset_in_use")
    searching = session.scalars(
        sa.select(Sweep.id)
        .where(Sweep.dataset_id == dataset_id, Sweep.status.in_(SWEEP_ACTIVE))
        .limit(1)
    ).one_or_none()
    if searching is not None:
        message = f"sweep {searching} needs data set {dataset_id}; cancel it or wait"
        raise Conflict(message, code="dataset_in_use")
    session.execute(
        sa.update(Dataset)
        .where(Dataset.id == dataset_id, Dataset.tenant_id == tenant_id)
        .values(deleted_at=clock.now())
        .execution_options(synchronize_session=False)
    )
    return row


def _usable() -> tuple[sa.ColumnElement[bool], ...]:
    return (Dataset.deleted_at.is_(None), Dataset.status != DatasetStatus.INVALID)
