"""``/jobs:estimate`` and ``/estimates``: what a job would take, before it is started."""

from time import monotonic
from typing import Annotated

import anyio
from fastapi import APIRouter, Query, Response
from fastapi.concurrency import run_in_threadpool

from app.dependencies import (
    After,
    GuardedRoute,
    Id,
    Limit,
    PartsDep,
    ReadDep,
    Reader,
    UnitDep,
    Writer,
)
from app.routes.jobs import EXAMPLES
from app.schemas.errors import JSON_BODY, UNTRAINABLE, error_answers
from app.schemas.estimates import EstimateAnswer
from app.schemas.shared import Page
from app.services import estimates as service
from app.services.parts import Parts
from core.db import estimates
from core.states import ESTIMATE_ENDS, EstimateStatus
from peft_engine.configs import JobSpec

router = APIRouter(tags=["estimates"], route_class=GuardedRoute)

MOST_WAIT_SECONDS = 30
_LOOK_SECONDS = 0.25


@router.post(
    "/jobs:estimate",
    status_code=202,
    summary="Estimate a job",
    response_model=EstimateAnswer,
    openapi_extra={
        "requestBody": {"content": {"application/json": {"examples": EXAMPLES}}},
    },
    responses={
        200: {"model": EstimateAnswer, "description": "It is over already."},
        **error_answers(
            *UNTRAINABLE,
            "base_not_found",
            "adapter_not_found",
            "estimate_unavailable",
            "too_many_estimates",
            *JSON_BODY,
        ),
    },
)
async def estimate_job(
    spec: JobSpec,
    response: Response,
    caller: Writer,
    parts: PartsDep,
    wait: Annotated[
        float,
        Query(
            ge=0,
            le=MOST_WAIT_SECONDS,
            description="Seconds to wait for the result; without one in time the answer is 202.",
        ),
    ] = 3.0,
) -> EstimateAnswer:
    """Measure whether a job fits, how long it takes, and what every `auto` comes to.

    The body is that of `POST /jobs`. A worker takes real steps on the data set's own rows, between
    jobs: the estimate waits its turn, takes some half a minute, and leaves nothing behind. Poll
    `GET /estimates/{id}`.
    """
    answer = await run_in_threadpool(_create, parts, caller.tenant_id, spec)
    deadline = monotonic() + wait
    while answer.status not in ESTIMATE_ENDS and (left := deadline - monotonic()) > 0:
        await anyio.sleep(min(left, _LOOK_SECONDS))
        answer = await run_in_threadpool(_read, parts, caller.tenant_id, answer.id)
    response.headers["location"] = f"/estimates/{answer.id}"
    if answer.status in ESTIMATE_ENDS:
        response.status_code = 200
    return answer


def _create(parts: Parts, tenant_id: str, spec: JobSpec) -> EstimateAnswer:
    """Not by a dependency: whoever waits must not hold a transaction."""
    with parts.unit() as unit:
        row = service.create(unit, parts=parts, tenant_id=tenant_id, spec=spec)
        return service.as_answer(unit.session, row)


def _read(parts: Parts, tenant_id: str, estimate_id: str) -> EstimateAnswer:
    with parts.database.read() as session:
        return service.as_answer(session, estimates.get(session, tenant_id, estimate_id))


@router.get(
    "/estimates",
    summary="List estimates",
    response_model=Page[EstimateAnswer],
    responses=error_answers(),
)
def list_estimates(
    caller: Reader,
    session: ReadDep,
    status: EstimateStatus | None = None,
    limit: Limit = 20,
    after: After = None,
) -> Page[EstimateAnswer]:
    """List your estimates, newest first."""
    page = estimates.list_page(session, caller.tenant_id, status=status, limit=limit, after=after)
    return Page.of(service.as_answers(session, page.items), has_more=page.has_more)


@router.get(
    "/estimates/{estimate_id}",
    summary="Get an estimate",
    response_model=EstimateAnswer,
    responses=error_answers("estimate_not_found"),
)
def get_estimate(estimate_id: Id, caller: Reader, session: ReadDep) -> EstimateAnswer:
    """Show an estimate: where it stands, and what was measured."""
    return service.as_answer(session, estimates.get(session, caller.tenant_id, estimate_id))


@router.post(
    "/estimates/{estimate_id}:cancel",
    status_code=202,
    summary="Cancel an estimate",
    response_model=EstimateAnswer,
    responses=error_answers("estimate_not_found", "estimate_finished"),
)
def cancel_estimate(estimate_id: Id, caller: Writer, unit: UnitDep) -> EstimateAnswer:
    """Cancel a queued estimate at once; let a running one stop at its next forward."""
    row = estimates.request_cancel(unit.session, caller.tenant_id, estimate_id)
    return service.as_answer(unit.session, row)
