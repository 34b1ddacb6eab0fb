"""Adapters: published deltas, addressed by id, name, name and version, or alias."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db import clock, names, owned
from core.db.models import Adapter, Alias, Job, MetricDraw
from core.db.objects import hold_object
from core.db.pages import Page
from core.errors import Conflict, NotFound
from core.ids import is_checkpoint, new_id
from core.states import TERMINAL


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a reference means at one moment.

    Attributes:
        adapter: The adapter.
        alias: Name of the alias that it came through; None for an id or a name.
        revision: Which move of the alias had brought it there.
    """

    adapter: Adapter
    alias: str | None = None
    revision: int | None = None


_VERSIONED = re.compile(r"(?P<name>[^@]+)@(?P<version>[1-9][0-9]{0,8})")


def publish(
    session: Session,
    *,
    tenant_id: str,
    name: str,
    base_model: str,
    base_fingerprint: str,
    task: str,
    methods: list[Any],
    parameters: int,
    bytes: int,
    digest: str,
    key: str,
    **values: Any,
) -> Adapter:
    """Publish a delta as the next version of a name; its bytes are in storage already.

    They were, that is, and cannot be removed any more when this returns: look once more whether
    they are there before the transaction ends, since a deletion of an equal adapter may have been
    quicker.

    Args:
        session: A writing session; a worker has called ``jobs.hold`` in it.
        tenant_id: Whose adapter.
        name: Its name.
        base_model: Name of the base that it was trained on.
        base_fingerprint: ``sha256:…`` of that base.
        task: Its task.
        methods: Configurations of its methods, in order.
        parameters: How many numbers it holds, without the head.
        bytes: Size of the stored object.
        digest: ``sha256:…`` of the delta.
        key: Where it lies in storage.
        **values: Any of job_id, dataset_id, parent_adapter_id, labels, template_digest, metrics,
            certificate, metadata_, origin, idempotency_key, request_digest.

    Returns:
        The adapter with its version. ``Conflict`` (code ``name_taken``) goes through when an alias
        has the name.
    """
    names.hold_for_adapter(session, tenant_id, name, param="name")
    hold_object(session, key)
    # versions of deleted adapters are not given again: a receipt must stay unambiguous
    highest = session.scalar(
        sa.select(sa.func.max(Adapter.version)).where(
            Adapter.tenant_id == tenant_id, Adapter.name == name
        )
    )
    row = Adapter(
        id=new_id("adp"),
        tenant_id=tenant_id,
        name=name,
        version=(highest or 0) + 1,
        base_model=base_model,
        base_fingerprint=base_fingerprint,
        task=task,
        methods=methods,
        parameters=parameters,
        bytes=bytes,
        digest=digest,
        key=key,
        **values,
    )
    session.add(row)
    session.flush()
    return row


def get(session: Session, tenant_id: str, adapter_id: str) -> Adapter:
    """Read an adapter by id; ``NotFound`` when the tenant has none such, or has deleted it.

    Args:
        session: An open session.
        tenant_id: Who asks.
        adapter_id: ``adp_…``.

    Returns:
        The adapter.
    """
    return _one(session, tenant_id, adapter_id)


def get_for_worker(session: Session, adapter_id: str) -> Adapter | None:
    """Read the adapter that a job continues from; the api has checked whose it is.

    Args:
        session: An open session.
        adapter_id: ``adp_…``.

    Returns:
        The adapter, or None when it is not there or was deleted.
    """
    row = session.get(Adapter, adapter_id, populate_existing=True)
    return None if row is None or row.deleted_at is not None else row


def find_row(session: Session, tenant_id: str, adapter_id: str | None) -> Adapter | None:
    """Read the row of an adapter, also of one that was deleted.

    Args:
        session: An open session.
        tenant_id: Whose adapter.
        adapter_id: ``adp_…``, or None.

    Returns:
        The row, or None.
    """
    query = sa.select(Adapter).where(Adapter.id == adapter_id, Adapter.tenant_id == tenant_id)
    return session.scalars(query).one_or_none() if adapter_id is not None else None


def hold(session: Session, tenant_id: str, adapter_id: str) -> Adapter:
    """Read an adapter by id and keep it from being deleted until the transaction ends.

    Args:
        session: A writing session.
        tenant_id: Who asks.
        adapter_id: ``adp_…``.

    Returns:
        The adapter; ``NotFound`` when the tenant has none such, or has deleted it.
    """
    # without the lock, Postgres lets a deletion and whatever makes it forbidden pass each other
    return _one(session, tenant_id, adapter_id, hold=True)


def resolve(session: Session, tenant_id: str, reference: str) -> Adapter:
    """Find the adapter that a reference means at this moment; ``NotFound`` when it means none.

    Args:
        session: An open session.
        tenant_id: Who asks.
        reference: An id, ``name`` (its newest version), ``name@3``, or an alias.

    Returns:
        The adapter.
    """
    return resolve_traced(session, tenant_id, reference).adapter


def resolve_traced(session: Session, tenant_id: str, reference: str) -> Resolved:
    """Find the adapter that a reference means at this moment, and how it came to it.

    Args:
        session: An open session.
        tenant_id: Who asks.
        reference: An id, ``name`` (its newest version), ``name@3``, or an alias. No alias has the
            name of an adapter (``core.db.names``), so none of them hides another.

    Returns:
        The adapter, and the alias if it is one.

    Raises:
        NotFound: It means none.
    """
    alias = sa.select(Alias).where(Alias.tenant_id == tenant_id, Alias.name == reference)
    versioned = _VERSIONED.fullmatch(reference)
    if versioned is not None:
        condition = sa.and_(
            Adapter.name == versioned["name"], Adapter.version == int(versioned["version"])
        )
    else:
        condition = sa.or_(
            Adapter.id == reference,
            Adapter.name == reference,
            Adapter.id == alias.with_only_columns(Alias.adapter_id).scalar_subquery(),
        )
    # one statement: between two, the alias could move and its old adapter be deleted
    query = _newest(tenant_id, condition).add_columns(
        alias.with_only_columns(Alias.revision).scalar_subquery()
    )
    found = session.execute(query).one_or_none()
    if found is None:
        raise NotFound(_missing(reference), code="adapter_not_found", param="adapter_id")
    row, revision = found
    return Resolved(row, None if revision is None else reference, revision)


def list_page(
    session: Session,
    tenant_id: str,
    *,
    name: str | None = None,
    base_model: str | None = None,
    task: str | None = None,
    limit: int = 20,
    after: str | None = None,
) -> Page[Adapter]:
    """List a tenant's adapters, newest first.

    Args:
        session: An open session.
        tenant_id: Who asks.
        name: Only versions of this name.
        base_model: Only these.
        task: Only these.
        limit: Rows of a page.
        after: Last id of the page before.

    Returns:
        One page.
    """
    wanted = owned.matching(
        (Adapter.name, name), (Adapter.base_model, base_model), (Adapter.task, task)
    )
    return owned.list_page(session, Adapter, tenant_id, *wanted, limit=limit, after=after)


def references(session: Session, tenant_id: str, adapter_ids: Sequence[str]) -> dict[str, str]:
    """Name adapters, those that were deleted too.

    Args:
        session: An open session.
        tenant_id: Whose adapters.
        adapter_ids: Which ones.

    Returns:
        ``name@version`` by id.
    """
    if not adapter_ids:
        return {}
    query = sa.select(Adapter.id, Adapter.name, Adapter.version).where(
        Adapter.tenant_id == tenant_id, Adapter.id.in_(adapter_ids)
    )
    return {row.id: f"{row.name}@{row.version}" for row in session.execute(query)}


def derived_bases(session: Session, tenant_id: str) -> dict[str, str]:
    """Find the derived bases that a tenant's adapters were trained on.

    Args:
        session: An open session.
        tenant_id: Who asks.

    Returns:
        Fingerprint by name.
    """
    query = (
        sa.select(Adapter.base_model, Adapter.base_fingerprint)
        .where(Adapter.tenant_id == tenant_id, Adapter.deleted_at.is_(None))
        .where(Adapter.base_model.contains("@"))
        .order_by(Adapter.id)
    )
    return {row.base_model: row.base_fingerprint for row in session.execute(query)}


def mark_deleted(session: Session, tenant_id: str, adapter_id: str) -> Adapter:
    """Delete an adapter; its row stays for the receipts that name it.

    Args:
        session: A writing session.
        tenant_id: Who asks.
        adapter_id: ``adp_…``.

    Returns:
        The row, for the key of its object; ``core.db.objects.remove_unneeded`` removes that after
        the commit.

    Raises:
        Conflict: An alias points to it, or a job that has not ended continues from it (code
            ``adapter_in_use``).
    """
    row = hold(session, tenant_id, adapter_id)
    _refuse_aliased(session, row)
    query = (
        sa.select(Job.id)
        .where(
            Job.tenant_id == tenant_id,
            Job.status.not_in(TERMINAL),
            Job.spec["parent_adapter_id"].as_string() == adapter_id,
        )
        .limit(1)
    )
    busy = session.scalars(query).one_or_none()
    if busy is not None:
        message = f"job {busy} continues from adapter {adapter_id}; cancel it or wait"
        raise Conflict(message, code="adapter_in_use")
    session.execute(
        sa.update(Adapter)
        .where(Adapter.id == adapter_id, Adapter.tenant_id == tenant_id)
        .values(deleted_at=clock.now())
        .execution_options(synchronize_session=False)
    )
    # nothing is moved to it any more, so nothing is compared with it
    session.execute(sa.delete(MetricDraw).where(MetricDraw.adapter_id == adapter_id))
    return row


def _refuse_aliased(session: Session, row: Adapter) -> None:
    query = (
        sa.select(Alias.name)
        .where(Alias.tenant_id == row.tenant_id, Alias.adapter_id == row.id)
        .order_by(Alias.name)
    )
    aliases = list(session.scalars(query))
    if aliases:
        message = (
            f"adapter {row.id} ({row.name}@{row.version}) is what the alias "
            f"{', '.join(aliases)} points to; move or delete the alias first"
        )
        raise Conflict(message, code="adapter_in_use")


def _one(
    session: Session,
    tenant_id: str,
    adapter_id: str,
    *,
    hold: bool = False,
) -> Adapter:
    query = _newest(tenant_id, Adapter.id == adapter_id)
    if hold:
        query = query.with_for_update(key_share=True).execution_options(populate_existing=True)
    row = session.scalars(query).one_or_none()
    if row is None:
        raise NotFound(_missing(adapter_id), code="adapter_not_found", param="adapter_id")
    return row


def _newest(tenant_id: str, condition: sa.ColumnElement[bool]) -> sa.Select[Adapter]:
    return (
        sa.select(Adapter)
        .where(Adapter.tenant_id == tenant_id, Adapter.deleted_at.is_(None), condition)
        .order_by(Adapter.version.desc())
        .limit(1)
    )


def _missing(reference: str) -> str:
    if is_checkpoint(reference):
        return (
            f"{reference!r} is a checkpoint, which goes away with its job; publish it by POST "
            "/jobs/{job_id}/checkpoints/{checkpoint_id}:publish and name the adapter that it gives"
        )
    return f"there is no adapter {reference!r}; GET /adapters lists yours"
