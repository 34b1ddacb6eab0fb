"""Batches as their owner sees them: made, read, listed, cancelled."""

from collections.abc import Mapping

from sqlalchemy.orm import Session

from core.db import clock, idempotency, owned
from core.db.models import Batch
from core.db.pages import Page
from core.errors import Conflict
from core.ids import new_id
from core.states import BATCH_TRANSITIONS, BatchStatus


def create_once(
    session: Session,
    *,
    tenant_id: str,
    endpoint: str,
    input_file_id: str,
    metadata: Mapping[str, str] | None,
    window_seconds: float,
    idempotency_key: str | None,
    request_digest: str,
) -> tuple[Batch, bool]:
    """Insert a batch unless the same wish has made it already.

    Args:
        session: A writing session.
        tenant_id: Whose batch.
        endpoint: Path that every request goes to.
        input_file_id: A file of the tenant that the session holds.
        metadata: Labels.
        window_seconds: After so long what was not answered is not asked any more.
        idempotency_key: The caller's key; without one an equal body within two minutes is the same
            wish, unless that batch failed, expired or was cancelled.
        request_digest: Digest of the request body.

    Returns:
        The batch, and whether it is new.
    """
    row = Batch(
        id=new_id("batch"),
        tenant_id=tenant_id,
        endpoint=endpoint,
        input_file_id=input_file_id,
        metadata_=None if metadata is None else dict(metadata),
        status=BatchStatus.VALIDATING,
        expires_at=clock.later(window_seconds),
        idempotency_key=idempotency_key,
        request_digest=request_digest,
    )
    still_wanted = Batch.status.not_in(
        (BatchStatus.FAILED, BatchStatus.EXPIRED, BatchStatus.CANCELLED)
    )
    return idempotency.insert_once(session, row, still_wanted)


def get(session: Session, tenant_id: str, batch_id: str) -> Batch:
    """Read a batch.

    Args:
        session: An open session.
        tenant_id: Who asks.
        batch_id: Which one.

    Returns:
        The batch; ``NotFound`` when the tenant has none such.
    """
    return owned.get(session, Batch, tenant_id, batch_id)


def list_page(
    session: Session, tenant_id: str, *, limit: int = 20, after: str | None = None
) -> Page[Batch]:
    """List a tenant's batches, newest first.

    Args:
        session: An open session.
        tenant_id: Who asks.
        limit: Rows of a page.
        after: Last id of the page before.

    Returns:
        One page.
    """
    return owned.list_page(session, Batch, tenant_id, limit=limit, after=after)


def request_cancel(session: Session, tenant_id: str, batch_id: str) -> Batch:
    """Cancel a batch; whoever runs it, or claims it next, keeps what was answered and ends it.

    Args:
        session: A writing session.
        tenant_id: Who asks.
        batch_id: Which one.

    Returns:
        The batch, ``cancelling`` or ``cancelled``; a second wish changes nothing.

    Raises:
        Conflict: It has ended otherwise.
    """
    batch = owned.get(session, Batch, tenant_id, batch_id, lock=owned.Lock.CHANGE)
    if batch.status in {BatchStatus.CANCELLING, BatchStatus.CANCELLED}:
        return batch
    if BatchStatus.CANCELLING not in BATCH_TRANSITIONS[batch.status]:
        message = f"batch {batch_id} is {batch.status}; it cannot be cancelled any more"
        raise Conflict(message, code="batch_ended")
    batch.status = BatchStatus.CANCELLING
    batch.cancelling_at = clock.now()
    session.flush()
    session.refresh(batch)
    return batch
