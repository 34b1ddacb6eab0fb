"""``/v1/batches``: many requests in one file, answered by and by."""

from typing import Any

from fastapi import APIRouter

from app.dependencies import (
    After,
    GuardedRoute,
    Id,
    IdempotencyKey,
    Limit,
    Predictor,
    ReadDep,
    Reader,
    UnitDep,
)
from app.openai.routes.documented import body_examples
from app.openai.routes.refusing import renaming
from app.openai.schemas.batches import BatchObject, BatchRequest
from app.openai.services import batches as service
from app.schemas.errors import JSON_BODY, error_answers
from app.schemas.shared import Page
from core.db import batches

router = APIRouter(prefix="/v1/batches", tags=["openai"], route_class=GuardedRoute)

_FILE = "file_06f1k2m3n4p5q6r7s8t9v0w1x2"


def _example(endpoint: str, **more: Any) -> dict[str, Any]:
    return {"input_file_id": _FILE, "endpoint": endpoint, "completion_window": "24h", **more}


@router.post(
    "",
    summary="Create a batch",
    response_model=BatchObject,
    openapi_extra=body_examples(
        chat=("Conversations", _example("/v1/chat/completions", metadata={"team": "care"})),
        predict=("Adapters of any task", _example("/predict")),
    ),
    responses=error_answers("file_not_found", "idempotency_mismatch", *JSON_BODY),
)
def create_batch(
    body: BatchRequest, caller: Predictor, unit: UnitDep, idempotency_key: IdempotencyKey = None
) -> BatchObject:
    """Answer every request of a file within a day, as `endpoint` would answer it.

    Each line of the file is `{"custom_id", "method": "POST", "url", "body"}`, the url being the
    batch's `endpoint`. All lines are checked first: when any cannot be used, nothing is asked, the
    batch is `failed`, and `errors` names **every** such line. A request that the endpoint refuses
    stands in the error file, and the others go on.

    What is asked for now comes before what batches ask. The same body sent again within two minutes
    (or the same `Idempotency-Key`, at any time) is the same batch.
    """
    with renaming({"file_id": "input_file_id"}):
        row = service.create(
            unit, tenant_id=caller.tenant_id, body=body, idempotency_key=idempotency_key
        )
    return service.as_batch(row)


@router.get("", summary="List batches", response_model=Page[BatchObject], responses=error_answers())
def list_batches(
    caller: Reader, session: ReadDep, limit: Limit = 20, after: After = None
) -> Page[BatchObject]:
    """List your batches, newest first."""
    page = batches.list_page(session, caller.tenant_id, limit=limit, after=after)
    return Page.of([service.as_batch(row) for row in page.items], has_more=page.has_more)


@router.get(
    "/{batch_id}",
    summary="Get a batch",
    response_model=BatchObject,
    responses=error_answers("batch_not_found"),
)
def get_batch(batch_id: Id, caller: Reader, session: ReadDep) -> BatchObject:
    """Show a batch: how far it is, and its files once it has ended."""
    return service.as_batch(batches.get(session, caller.tenant_id, batch_id))


@router.post(
    "/{batch_id}/cancel",
    summary="Cancel a batch",
    response_model=BatchObject,
    responses=error_answers("batch_not_found", "batch_ended"),
)
def cancel_batch(batch_id: Id, caller: Predictor, unit: UnitDep) -> BatchObject:
    """Ask no further request; what is answered by then stands in the files.

    Requests under way have some seconds to be answered (`cancelling`); those without an answer
    stand in the error file as `batch_cancelled`.
    """
    return service.as_batch(batches.request_cancel(unit.session, caller.tenant_id, batch_id))
