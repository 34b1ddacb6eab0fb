"""Adapters that are there: show, delete, give the bytes out. Workers publish them."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool

from app.schemas.adapters import AdapterAnswer, Lineage, Relative
from app.services.parts import Parts, Unit
from app.services.reports import leave_details_out
from core.db import Session, adapters, aliases, lineage
from core.db.models import Adapter
from core.db.objects import remove_unneeded
from core.errors import Conflict, Unavailable

PIECE_BYTES = 1 << 18

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Export:
    """A delta on its way out.

    Attributes:
        filename: What to call it.
        digest: Of the delta.
        size_bytes: Length of the file.
        pieces: Its content.
    """

    filename: str
    digest: str
    size_bytes: int
    pieces: Iterator[bytes]


def as_answers(
    session: Session, tenant_id: str, rows: Sequence[Adapter], *, in_list: bool = False
) -> list[AdapterAnswer]:
    """Shape rows for the user.

    Args:
        session: To find their aliases with.
        tenant_id: Who asks.
        rows: Adapters.
        in_list: Whether they are shown as a list; see ``leave_details_out``.

    Returns:
        What is shown of them, in the same order.
    """
    known = aliases.names_of(session, tenant_id, [row.id for row in rows])
    shape = leave_details_out if in_list else (lambda metrics: metrics)
    return [_as_answer(row, known.get(row.id, []), shape(row.metrics)) for row in rows]


def _as_answer(row: Adapter, names: list[str], metrics: dict[str, Any] | None) -> AdapterAnswer:
    return AdapterAnswer(
        id=row.id,
        name=row.name,
        version=row.version,
        reference=f"{row.name}@{row.version}",
        aliases=names,
        task=row.task,
        base_model=row.base_model,
        base_fingerprint=row.base_fingerprint,
        template_digest=row.template_digest,
        methods=[_as_method(method) for method in row.methods],
        labels=row.labels,
        parameters=row.parameters,
        bytes=row.bytes,
        digest=row.digest,
        metrics=metrics,
        certificate=row.certificate,
        metadata=row.metadata_,
        job_id=_job_of(row),
        dataset_id=row.dataset_id,
        parent_adapter_id=row.parent_adapter_id,
        origin=row.origin,
        created_at=row.created_at,
    )


def show_lineage(session: Session, *, tenant_id: str, reference: str) -> Lineage:
    """Show where an adapter comes from, and what was made from it.

    Args:
        session: To read with.
        tenant_id: Who asks.
        reference: Id, name, ``name@version`` or alias.

    Returns:
        Both.
    """
    row = adapters.resolve(session, tenant_id, reference)
    ancestors = lineage.list_ancestors(session, tenant_id, row.id)
    children = lineage.list_children(session, tenant_id, row.id)
    return Lineage(
        adapter=_as_relative(row),
        ancestors=[_as_relative(found) for found in ancestors.items],
        ancestors_has_more=ancestors.has_more,
        children=[_as_relative(found) for found in children.items],
        children_has_more=children.has_more,
    )


def _as_relative(row: Adapter) -> Relative:
    return Relative(
        adapter_id=row.id,
        adapter=f"{row.name}@{row.version}",
        digest=row.digest,
        job_id=_job_of(row),
        dataset_id=row.dataset_id,
        parent_adapter_id=row.parent_adapter_id,
        deleted=row.deleted_at is not None,
        created_at=row.created_at,
    )


def _job_of(row: Adapter) -> str | None:
    """The job that trained an adapter, at its end or at the step of a checkpoint."""
    return row.job_id or (row.origin or {}).get("job_id")


def _as_method(method: Any) -> dict[str, Any]:
    return method if isinstance(method, dict) else {"type": str(method)}


def find(parts: Parts, tenant_id: str, reference: str) -> Adapter:
    """Find an adapter.

    Args:
        parts: The database.
        tenant_id: Who asks.
        reference: Id, name, ``name@version`` or alias.

    Returns:
        Its row.
    """
    with parts.database.read() as session:
        return adapters.resolve(session, tenant_id, reference)


def show(parts: Parts, tenant_id: str, reference: str) -> AdapterAnswer:
    """Show an adapter.

    Args:
        parts: The database.
        tenant_id: Who asks.
        reference: Id, name, ``name@version`` or alias.

    Returns:
        What is shown of it.
    """
    with parts.database.read() as session:
        row = adapters.resolve(session, tenant_id, reference)
        return as_answers(session, tenant_id, [row])[0]


def export(parts: Parts, row: Adapter) -> Export:
    """Give an adapter out as it is stored: safetensors with the manifest in its header.

    Args:
        parts: Where the bytes are.
        row: The adapter.

    Returns:
        The file.
    """
    return Export(
        filename=f"{row.name}-{row.version}.safetensors",
        digest=row.digest,
        size_bytes=row.bytes,
        pieces=parts.store.stream(row.key, PIECE_BYTES),
    )


async def refuse_while_answering(parts: Parts, *, tenant_id: str, reference: str) -> None:
    """Refuse what would take an adapter away from requests that wait for it or run on it.

    A request that is resolved after this look and before the adapter is gone may still find its
    weights gone; it then gets an error, never another adapter's answer.

    Args:
        parts: Who answers.
        tenant_id: Who asks.
        reference: Id, name, ``name@version`` or alias.

    Raises:
        Conflict: Requests are in flight (code ``adapter_in_use``).
    """

    def resolve() -> str:
        with parts.database.read() as session:
            return adapters.resolve(session, tenant_id, reference).id

    adapter_id = await run_in_threadpool(resolve)
    requests = await parts.inference.requests_of(adapter_id)
    if requests:
        raise Conflict(
            f"adapter {adapter_id} is answering {requests} requests; try again when they are over",
            code="adapter_in_use",
        )


def delete(unit: Unit, parts: Parts, *, tenant_id: str, reference: str) -> str:
    """Delete an adapter; its bytes go after the commit, unless an equal adapter needs them.

    Args:
        unit: The transaction.
        parts: Where the bytes are.
        tenant_id: Who asks.
        reference: Id, name, ``name@version`` or alias.

    Returns:
        The id of the adapter that is gone.
    """
    found = adapters.resolve(unit.session, tenant_id, reference)
    row = adapters.mark_deleted(unit.session, tenant_id, found.id)
    unit.then(parts.known_adapters.forget_all)
    unit.then(lambda: _remove_weights(parts, row))
    return row.id


def _remove_weights(parts: Parts, row: Adapter) -> None:
    try:
        remove_unneeded(parts.database, row.key, parts.store.delete)
    except Unavailable as error:
        # the adapter is gone all the same
        _log.warning("%s is left to be removed as an orphan: %s", row.key, error)
