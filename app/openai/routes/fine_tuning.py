"""``/v1/fine_tuning/jobs``: make jobs, list them, stop them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, Request

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
from app.metadata_query import METADATA_PARAMETER, read_metadata
from app.openai.routes.documented import body_examples
from app.openai.routes.refusing import renaming
from app.openai.schemas.fine_tuning import JobRequest
from app.openai.schemas.fine_tuning_answers import FineTuningJob, JobCheckpoint, JobEvent
from app.openai.services import fine_tuning as service
from app.openai.services import fine_tuning_answers as answers
from app.schemas.errors import JSON_BODY, UNTRAINABLE, error_answers
from app.schemas.shared import Page
from app.services import jobs as native
from app.services.joining import join
from core.db import checkpoints, events, jobs
from core.db.pages import refuse_cursor
from core.errors import ServiceError
from core.ids import is_id
from peft_engine.errors import EngineError

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["openai"], route_class=GuardedRoute)

_FILE = "ds_06f1k2m3n4p5q6r7s8t9v0w1x2"


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except (ServiceError, EngineError) as error:
        told = service.as_refusal(error)
        raise told from error


def _find_dataset(body: JobRequest, caller: Writer, parts: PartsDep) -> str:
    # a dependency of its own: no transaction is open while rows are copied
    if body.validation_file is None:
        return body.training_file
    with renaming({"train": "training_file", "validation": "validation_file"}):
        files = {"train": body.training_file, "validation": body.validation_file}
        return join(parts, tenant_id=caller.tenant_id, files=files).id


@router.post(
    "",
    summary="Create a fine-tuning job",
    response_model=FineTuningJob,
    openapi_extra=body_examples(
        smallest=("Everything by default", {"model": "smollm2", "training_file": _FILE}),
        chosen=(
            "Settings, and fields of ours",
            {
                "model": "smollm2",
                "training_file": _FILE,
                "suffix": "menu-texts",
                "seed": 1,
                "method": {
                    "type": "supervised",
                    "supervised": {"hyperparameters": {"n_epochs": 2}},
                },
                "metadata": {"team": "care"},
                "x_tunery": {"method": {"type": "lora", "r": 8}, "training": {"max_length": 256}},
            },
        ),
    ),
    responses=error_answers(
        *UNTRAINABLE,
        "model_not_found",
        "idempotency_mismatch",
        "storage_unavailable",
        *JSON_BODY,
    ),
)
def create_fine_tuning_job(
    body: JobRequest,
    dataset_id: Annotated[str, Depends(_find_dataset)],
    caller: Writer,
    unit: UnitDep,
    parts: PartsDep,
    idempotency_key: IdempotencyKey = None,
) -> FineTuningJob:
    """Queue a training job, as `POST /jobs` does.

    The same body sent again within two minutes (or the same `Idempotency-Key`, at any time) is the
    same job, so that a client that asks again after a lost answer makes one. What is not offered
    (other methods than `supervised`, integrations, multiplied rates) is refused by name.
    """
    tenant_id = caller.tenant_id
    spec = service.read_request(
        unit.session, parts.settings, tenant_id=tenant_id, dataset_id=dataset_id, body=body
    )
    with _refusing():
        job, _ = native.create(
            unit, parts=parts, tenant_id=tenant_id, spec=spec, idempotency_key=idempotency_key
        )
    return answers.as_job(unit.session, job)


@router.get(
    "",
    summary="List fine-tuning jobs",
    response_model=Page[FineTuningJob],
    responses=error_answers(),
    openapi_extra={"parameters": [METADATA_PARAMETER]},
)
def list_fine_tuning_jobs(
    request: Request, caller: Reader, session: ReadDep, limit: Limit = 20, after: After = None
) -> Page[FineTuningJob]:
    """List your jobs, newest first, those of `POST /jobs` too."""
    page = jobs.list_page(
        session, caller.tenant_id, metadata=read_metadata(request), limit=limit, after=after
    )
    rows = answers.as_jobs(session, caller.tenant_id, page.items)
    return Page.of(rows, has_more=page.has_more)


@router.get(
    "/{job_id}",
    summary="Get a fine-tuning job",
    response_model=FineTuningJob,
    responses=error_answers("job_not_found"),
)
def get_fine_tuning_job(job_id: Id, caller: Reader, session: ReadDep) -> FineTuningJob:
    """Show a job; `x_tunery` is all that `GET /jobs/{id}` shows."""
    return answers.as_job(session, jobs.get(session, caller.tenant_id, job_id))


@router.post(
    "/{job_id}/cancel",
    summary="Cancel a fine-tuning job",
    response_model=FineTuningJob,
    responses=error_answers("job_not_found", "job_finished"),
)
def cancel_fine_tuning_job(
    job_id: Id, caller: Writer, unit: UnitDep, parts: PartsDep
) -> FineTuningJob:
    """Cancel a waiting job at once; a running one stops at its next step, `running` until then."""
    job = native.cancel(unit, parts=parts, tenant_id=caller.tenant_id, job_id=job_id)
    return answers.as_job(unit.session, job)


@router.post(
    "/{job_id}/pause",
    summary="Pause a fine-tuning job",
    response_model=FineTuningJob,
    responses=error_answers("job_not_found", "job_finished", "invalid_transition"),
)
def pause_fine_tuning_job(job_id: Id, caller: Writer, unit: UnitDep) -> FineTuningJob:
    """Hold a queued job back at once; a running one writes a checkpoint first (`pausing`)."""
    return answers.as_job(unit.session, jobs.request_pause(unit.session, caller.tenant_id, job_id))


@router.post(
    "/{job_id}/resume",
    summary="Resume a paused fine-tuning job",
    response_model=FineTuningJob,
    responses=error_answers("job_not_found", "job_finished", "invalid_transition"),
)
def resume_fine_tuning_job(
    job_id: Id, caller: Writer, unit: UnitDep, parts: PartsDep
) -> FineTuningJob:
    """Queue a paused job again; it goes on from its checkpoint. One never started is started."""
    job = native.resume(unit, parts=parts, tenant_id=caller.tenant_id, job_id=job_id)
    return answers.as_job(unit.session, job)


@router.get(
    "/{job_id}/events",
    summary="List the events of a fine-tuning job",
    response_model=Page[JobEvent],
    responses=error_answers("job_not_found"),
)
def list_fine_tuning_events(
    job_id: Id, caller: Reader, session: ReadDep, limit: Limit = 20, after: After = None
) -> Page[JobEvent]:
    """List what happened, **newest first** as OpenAI does; `GET /jobs/{id}/events` streams it."""
    jobs.get(session, caller.tenant_id, job_id)
    before = answers.read_cursor(after)
    page = events.newest(session, caller.tenant_id, job_id, before_seq=before, limit=limit)
    return Page.of([answers.as_event(row) for row in page.items], has_more=page.has_more)


@router.get(
    "/{job_id}/checkpoints",
    summary="List the checkpoints of a fine-tuning job",
    response_model=Page[JobCheckpoint],
    responses=error_answers("job_not_found"),
)
def list_fine_tuning_checkpoints(
    job_id: Id, caller: Reader, session: ReadDep, limit: Limit = 10, after: After = None
) -> Page[JobCheckpoint]:
    """List what a killed job would go on from, the furthest first.

    `fine_tuned_model_checkpoint` is a `model` of every route here while the checkpoint is there: a
    job keeps its newest two, and none once it has succeeded or was cancelled.
    """
    job = jobs.get(session, caller.tenant_id, job_id)
    if after is not None and not is_id("ckpt", after):
        refuse_cursor(repr(after))
    rows = checkpoints.list_newest(session, caller.tenant_id, job_id)
    places = [place for place, row in enumerate(rows) if row.id == after]
    # a cursor that is gone was pruned, and those before it with it
    start = 0 if after is None else places[0] + 1 if places else len(rows)
    shown = answers.as_checkpoints(session, job, rows[start : start + limit])
    return Page.of(shown, has_more=start + limit < len(rows))
