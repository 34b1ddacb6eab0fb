"""Batches: make one, show one. Who runs them is ``app.batches``, a process of its own."""

from app.openai.schemas.batches import (
    WINDOW_SECONDS,
    BatchCounts,
    BatchErrors,
    BatchObject,
    BatchRequest,
)
from app.openai.services.moments import unix_seconds
from app.services.parts import Unit
from core.db import batches, files
from core.db.idempotency import digest_request, find_by_key
from core.db.models import Batch
from core.errors import BadInput

_MOMENTS = (
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)


def create(unit: Unit, *, tenant_id: str, body: BatchRequest, idempotency_key: str | None) -> Batch:
    """Make a batch, unless the same wish has made it already.

    Args:
        unit: The transaction.
        tenant_id: The owner.
        body: What was asked.
        idempotency_key: The caller's key; without one an equal body within two minutes is the same
            wish.

    Returns:
        The batch.

    Raises:
        BadInput: The file was not sent for a batch.
    """
    digest = digest_request(body.model_dump(mode="json"))
    if idempotency_key is not None:
        # the same answer, whatever has become of its file
        known = find_by_key(
            unit.session, Batch, tenant_id=tenant_id, key=idempotency_key, request_digest=digest
        )
        if known is not None:
            return known
    if body.input_file_id.startswith("ds_"):
        raise BadInput(
            f"{body.input_file_id} holds rows to train on; send the requests as a file of purpose "
            f"{files.BATCH}",
            param="input_file_id",
        )
    file = files.hold(unit.session, tenant_id, body.input_file_id)
    if file.purpose != files.BATCH:
        raise BadInput(
            f"{file.id} has the purpose {file.purpose}, not {files.BATCH}", param="input_file_id"
        )
    batch, _ = batches.create_once(
        unit.session,
        tenant_id=tenant_id,
        endpoint=body.endpoint,
        input_file_id=file.id,
        metadata=body.metadata,
        window_seconds=WINDOW_SECONDS,
        idempotency_key=idempotency_key,
        request_digest=digest,
    )
    return batch


def as_batch(row: Batch) -> BatchObject:
    """Shape a row for the user.

    Args:
        row: The batch.

    Returns:
        What is shown of it.
    """
    found = row.errors
    return BatchObject.model_validate(
        {
            "id": row.id,
            "endpoint": row.endpoint,
            "errors": found and BatchErrors(data=found["data"], x_total=found["total"]),
            "input_file_id": row.input_file_id,
            "status": row.status,
            "output_file_id": row.output_file_id,
            "error_file_id": row.error_file_id,
            "created_at": unix_seconds(row.created_at),
            "expires_at": unix_seconds(row.expires_at),
            **{name: unix_seconds(getattr(row, name)) for name in _MOMENTS},
            "request_counts": BatchCounts(
                total=row.requests, completed=row.completed, failed=row.failed
            ),
            "metadata": row.metadata_,
        }
    )
