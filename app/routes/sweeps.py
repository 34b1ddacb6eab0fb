"""``/sweeps``: try out fields of a job, and test what is best on validation."""

from typing import Any

from fastapi import APIRouter, Response

from app.dependencies import (
    After,
    GuardedRoute,
    Id,
    IdempotencyKey,
    Limit,
    PartsDep,
    ReadDep,
    Reader,
    UnitDep,
    Writer,
)
from app.schemas.errors import JSON_BODY, UNTRAINABLE, error_answers
from app.schemas.shared import Page
from app.schemas.sweeps import SweepAnswer
from app.services import sweep_answers
from app.services import sweeps as service
from core.db import sweeps
from peft_engine.configs import SweepSpec

router = APIRouter(prefix="/sweeps", tags=["sweeps"], route_class=GuardedRoute)

_JOB = {"dataset_id": "ds_06f1k2m3n4p5q6r7s8t9v0w1x2", "base_model": "minilm"}

_EXAMPLES: dict[str, Any] = {
    "grid": {
        "summary": "Every combination",
        "value": {
            "job": {**_JOB, "adapter_name": "support-intents"},
            "search": {"training.learning_rate": [5e-4, 1e-3, 2e-3], "method.r": [4, 16]},
        },
    },
    "tpe": {
        "summary": "Drawn where earlier trials did well",
        "value": {
            "job": _JOB,
            "search": {
                "training.learning_rate": {"min": 1e-4, "max": 1e-2, "log": True},
                "method": {"values": ["lora", "bitfit", {"type": "bottleneck", "size": 32}]},
            },
            "strategy": "tpe",
            "max_jobs": 20,
            "max_parallel": 2,
        },
    },
    "seeds": {
        "summary": "How far seeds alone move the metric",
        "value": {
            "job": _JOB,
            "search": {"method": ["lora", "ia3"], "training.seed": [0, 1, 2]},
        },
    },
}


@router.post(
    "",
    status_code=202,
    summary="Create a sweep",
    response_model=SweepAnswer,
    openapi_extra={
        "requestBody": {"content": {"application/json": {"examples": _EXAMPLES}}},
    },
    responses=error_answers(
        *UNTRAINABLE,
        "no_validation_rows",
        "base_not_found",
        "adapter_not_found",
        "name_taken",
        "idempotency_mismatch",
        *JSON_BODY,
    ),
)
def create_sweep(
    spec: SweepSpec,
    response: Response,
    caller: Writer,
    parts: PartsDep,
    idempotency_key: IdempotencyKey = None,
) -> SweepAnswer:
    """Try out fields of a job; every trial is a job, and none of them looks at the test split.

    All fields and values are checked first, of a grid every combination. When all trials have
    ended, the one that is best on validation is trained once more with the test, as the next
    version of the job's `adapter_name`; trials publish under `<name>-trials`.

    The same body sent again within two minutes (or the same `Idempotency-Key`, at any time) is the
    same sweep.
    """
    # every combination of a large grid takes a second or two: before writers wait for it
    service.check(spec)
    with parts.unit() as unit:
        sweep = service.create(
            unit,
            parts=parts,
            tenant_id=caller.tenant_id,
            spec=spec,
            idempotency_key=idempotency_key,
        )
        answer = sweep_answers.as_answer(unit.session, sweep)
    response.headers["location"] = f"/sweeps/{answer.id}"
    return answer


@router.get("", summary="List sweeps", response_model=Page[SweepAnswer], responses=error_answers())
def list_sweeps(
    caller: Reader, session: ReadDep, limit: Limit = 20, after: After = None
) -> Page[SweepAnswer]:
    """List your sweeps, newest first, without their trials."""
    page = sweeps.list_page(session, caller.tenant_id, limit=limit, after=after)
    rows = sweep_answers.as_answers(session, caller.tenant_id, page.items)
    return Page.of(rows, has_more=page.has_more)


@router.get(
    "/{sweep_id}",
    summary="Get a sweep",
    response_model=SweepAnswer,
    responses=error_answers("sweep_not_found"),
)
def get_sweep(sweep_id: Id, caller: Reader, session: ReadDep) -> SweepAnswer:
    """Show a sweep: its trials, which is best, how much of that noise explains, and the test."""
    return sweep_answers.as_answer(session, sweeps.get(session, caller.tenant_id, sweep_id))


@router.post(
    "/{sweep_id}:cancel",
    status_code=202,
    summary="Cancel a sweep",
    response_model=SweepAnswer,
    responses=error_answers("sweep_not_found", "sweep_finished"),
)
def cancel_sweep(sweep_id: Id, caller: Writer, unit: UnitDep, parts: PartsDep) -> SweepAnswer:
    """Cancel a sweep and every job of it that has not ended; what has ended stays."""
    sweep = service.cancel(unit, parts=parts, tenant_id=caller.tenant_id, sweep_id=sweep_id)
    return sweep_answers.as_answer(unit.session, sweep)
