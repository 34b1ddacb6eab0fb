"""``/jobs``: ask for training, follow it, stop it."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from app.dependencies import (
    ID_PATTERN,
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
from app.routes.event_stream import stream_events
from app.schemas.adapters import AdapterAnswer
from app.schemas.checkpoints import CheckpointAnswer, PublishRequest
from app.schemas.errors import JSON_BODY, UNTRAINABLE, error_answers
from app.schemas.jobs import EventPage, JobAnswer, MetricList
from app.schemas.manifests import JobManifest
from app.schemas.shared import Page
from app.services import adapters, checkpoints, job_answers, manifests
from app.services import jobs as service
from app.services.parts import Parts
from core.db import events, jobs
from core.states import JobStatus
from peft_engine.configs import JobSpec

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=GuardedRoute)

EXAMPLES: dict[str, Any] = {
    "smallest": {
        "summary": "Everything by default",
        "value": {"dataset_id": "ds_06f1k2m3n4p5q6r7s8t9v0w1x2", "base_model": "minilm"},
    },
    "chosen": {
        "summary": "A method and some settings",
        "value": {
            "dataset_id": "ds_06f1k2m3n4p5q6r7s8t9v0w1x2",
            "base_model": "minilm",
            "method": {"type": "lora", "r": 8, "alpha": 16},
            "training": {"epochs": 2, "batch_size": 16, "seed": 1},
            "adapter_name": "support-intents",
            "metadata": {"team": "care"},
        },
    },
    "held": {
        "summary": "Checked now, started later",
        "value": {
            "dataset_id": "ds_06f1k2m3n4p5q6r7s8t9v0w1x2",
            "base_model": "minilm",
            "auto_start": False,
        },
    },
    "continued": {
        "summary": "New data for an adapter that is there",
        "value": {
            "dataset_id": "ds_06f1k2m3n4p5q6r7s8t9v0w1x2",
            "base_model": "minilm",
            "parent_adapter_id": "support-intents@3",
            "adapter_name": "support-intents",
        },
    },
}

_PUBLISH_EXAMPLES: dict[str, Any] = {
    "plain": {"summary": "Named after the job's adapter and the step", "value": {}},
    "named": {"summary": "A name of your own", "value": {"name": "support-intents-demo"}},
}

MAX_SEQ = 2**63 - 1


@router.post(
    "",
    status_code=202,
    summary="Create a job",
    response_model=JobAnswer,
    openapi_extra={
        "requestBody": {"content": {"application/json": {"examples": EXAMPLES}}},
    },
    responses=error_answers(
        *UNTRAINABLE,
        "base_not_found",
        "adapter_not_found",
        "idempotency_mismatch",
        *JSON_BODY,
    ),
)
def create_job(
    spec: JobSpec,
    response: Response,
    caller: Writer,
    unit: UnitDep,
    parts: PartsDep,
    idempotency_key: IdempotencyKey = None,
) -> JobAnswer:
    """Queue a training job.

    Only `dataset_id` and `base_model` are needed; the answer shows every value in force.

    The same body sent again within two minutes (or the same `Idempotency-Key`, at any time) is the
    same job. The job is kept even if no worker can be told of it now. With `auto_start: false` it
    is checked, measured (`estimate`), and waits (`paused`) until `POST /jobs/{id}:start`.
    """
    job, _ = service.create(
        unit, parts=parts, tenant_id=caller.tenant_id, spec=spec, idempotency_key=idempotency_key
    )
    response.headers["location"] = f"/jobs/{job.id}"
    return job_answers.as_answer(unit.session, job)


@router.get(
    "",
    summary="List jobs",
    response_model=Page[JobAnswer],
    responses=error_answers(),
    openapi_extra={"parameters": [METADATA_PARAMETER]},
)
def list_jobs(
    request: Request,
    caller: Reader,
    session: ReadDep,
    status: JobStatus | None = None,
    dataset_id: Annotated[str | None, Query(pattern=ID_PATTERN)] = None,
    base_model: Annotated[str | None, Query(pattern=r"^[\x20-\x7e]{1,256}$")] = None,
    sweep: Annotated[
        str | None, Query(pattern=ID_PATTERN, description="Id of the sweep that made them.")
    ] = None,
    limit: Limit = 20,
    after: After = None,
) -> Page[JobAnswer]:
    """List your jobs, newest first."""
    page = jobs.list_page(
        session,
        caller.tenant_id,
        status=status,
        dataset_id=dataset_id,
        base_model=base_model,
        sweep_id=sweep,
        metadata=read_metadata(request),
        limit=limit,
        after=after,
    )
    rows = job_answers.as_answers(session, caller.tenant_id, page.items)
    return Page.of(rows, has_more=page.has_more)


@router.get(
    "/{job_id}",
    summary="Get a job",
    response_model=JobAnswer,
    responses=error_answers("job_not_found"),
)
def get_job(job_id: Id, caller: Reader, session: ReadDep) -> JobAnswer:
    """Show a job: where it stands, what it measured, and why it failed if it did."""
    return job_answers.as_answer(session, jobs.get(session, caller.tenant_id, job_id))


@router.post(
    "/{job_id}:cancel",
    status_code=202,
    summary="Cancel a job",
    response_model=JobAnswer,
    responses=error_answers("job_not_found", "job_finished"),
)
def cancel_job(job_id: Id, caller: Writer, unit: UnitDep, parts: PartsDep) -> JobAnswer:
    """Cancel a queued job at once; let a running one stop at its next step (`cancelling`)."""
    job = service.cancel(unit, parts=parts, tenant_id=caller.tenant_id, job_id=job_id)
    return job_answers.as_answer(unit.session, job)


@router.post(
    "/{job_id}:pause",
    status_code=202,
    summary="Pause a job",
    response_model=JobAnswer,
    responses=error_answers("job_not_found", "job_finished", "invalid_transition"),
)
def pause_job(job_id: Id, caller: Writer, unit: UnitDep) -> JobAnswer:
    """Hold a queued job back at once; let a running one write a checkpoint first (`pausing`)."""
    job = jobs.request_pause(unit.session, caller.tenant_id, job_id)
    return job_answers.as_answer(unit.session, job)


@router.post(
    "/{job_id}:resume",
    status_code=202,
    summary="Resume a paused job",
    response_model=JobAnswer,
    responses=error_answers("job_not_found", "job_finished", "invalid_transition"),
)
def resume_job(job_id: Id, caller: Writer, unit: UnitDep, parts: PartsDep) -> JobAnswer:
    """Queue a paused job again; it goes on from its checkpoint. One never started is started."""
    job = service.resume(unit, parts=parts, tenant_id=caller.tenant_id, job_id=job_id)
    return job_answers.as_answer(unit.session, job)


@router.post(
    "/{job_id}:start",
    status_code=202,
    summary="Start a job that waits for it",
    response_model=JobAnswer,
    responses=error_answers(
        "job_not_found",
        "job_finished",
        "invalid_transition",
        "task_mismatch",
        "task_not_supported",
        "unsupported",
        "base_not_found",
    ),
)
def start_job(job_id: Id, caller: Writer, unit: UnitDep, parts: PartsDep) -> JobAnswer:
    """Queue a job that was made with `auto_start: false`, after checking it once more."""
    job = service.start(unit, parts=parts, tenant_id=caller.tenant_id, job_id=job_id)
    return job_answers.as_answer(unit.session, job)


@router.post(
    "/{job_id}:retry",
    status_code=202,
    summary="Retry a failed job",
    response_model=JobAnswer,
    responses=error_answers(
        "job_not_found",
        "dataset_not_found",
        "dataset_not_ready",
        "dataset_leakage",
        "adapter_not_found",
        "invalid_transition",
        "task_mismatch",
        "task_not_supported",
        "unsupported",
        "base_not_found",
        "name_taken",
    ),
)
def retry_job(job_id: Id, caller: Writer, unit: UnitDep, parts: PartsDep) -> JobAnswer:
    """Queue a failed job again, checked once more; it goes on from its last checkpoint."""
    job = service.retry(unit, parts=parts, tenant_id=caller.tenant_id, job_id=job_id)
    return job_answers.as_answer(unit.session, job)


@router.post(
    "/{job_id}:reproduce",
    status_code=202,
    summary="Run a job once more",
    response_model=JobAnswer,
    responses=error_answers(
        "job_not_found",
        "dataset_not_found",
        "adapter_not_found",
        "base_not_found",
        "base_mismatch",
        "invalid_transition",
    ),
)
def reproduce_job(
    job_id: Id, response: Response, caller: Writer, unit: UnitDep, parts: PartsDep
) -> JobAnswer:
    """Queue a job with the spec, the data set, the base and the parent of one that succeeded.

    What was `auto` is set to what it became. Its adapter is named `<name>-reproduced`;
    `reproduces.same` of its manifest tells whether it is equal, number by number.
    """
    job = manifests.reproduce(unit, parts=parts, tenant_id=caller.tenant_id, job_id=job_id)
    response.headers["location"] = f"/jobs/{job.id}"
    return job_answers.as_answer(unit.session, job)


@router.get(
    "/{job_id}/manifest",
    summary="Get the manifest of a job",
    response_model=JobManifest,
    responses=error_answers("job_not_found"),
)
def get_manifest(job_id: Id, caller: Reader, session: ReadDep) -> JobManifest:
    """Show everything that decides what the job makes: spec, records, base, parent, versions."""
    return manifests.describe(session, caller.tenant_id, job_id)


@router.get(
    "/{job_id}/events",
    summary="Follow a job",
    response_model=EventPage,
    responses={
        200: {
            "description": "Events, oldest first; a live stream for `Accept: text/event-stream`.",
            "content": {
                "text/event-stream": {
                    "schema": {"type": "string"},
                    "example": 'id: 7\nevent: status\ndata: {"seq": 7, "event": "status"}\n\n',
                }
            },
        },
        **error_answers("job_not_found"),
    },
)
async def list_events(
    job_id: Id,
    request: Request,
    caller: Reader,
    parts: PartsDep,
    after: Annotated[
        int, Query(ge=0, le=MAX_SEQ, description="`last_seq` of the page before.")
    ] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    last_event_id: Annotated[
        str | None, Header(description="Sent by a browser that resumes a stream.")
    ] = None,
) -> Any:
    """Poll with `?after=<last_seq>`, or ask for `text/event-stream` and be told.

    The stream starts after `Last-Event-ID` (or `after`), ends when the job has ended or the key was
    revoked, and is never silent for more than 15 s.
    """
    if last_event_id is not None and last_event_id.isdecimal():
        after = max(after, min(int(last_event_id[:19]), MAX_SEQ))
    page = await run_in_threadpool(_event_page, parts, caller.tenant_id, job_id, after, limit)
    if "text/event-stream" not in request.headers.get("accept", ""):
        return page
    return StreamingResponse(
        stream_events(parts, caller=caller, job_id=job_id, after_seq=after),
        media_type="text/event-stream",
        headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
    )


def _event_page(parts: Parts, tenant_id: str, job_id: str, after: int, limit: int) -> EventPage:
    with parts.database.read() as session:
        found, has_more, _ = job_answers.read_events(
            session, tenant_id=tenant_id, job_id=job_id, after_seq=after, limit=limit
        )
    last_seq = found[-1].seq if found else after
    return EventPage(data=found, has_more=has_more, last_seq=last_seq)


@router.get(
    "/{job_id}/metrics",
    summary="Read the curves of a job",
    response_model=MetricList,
    responses=error_answers("job_not_found"),
)
def list_metrics(
    job_id: Id,
    caller: Reader,
    session: ReadDep,
    name: Annotated[
        str | None, Query(pattern=r"^[\x20-\x7e]{1,64}$", description="One curve only.")
    ] = None,
    from_step: Annotated[int | None, Query(alias="from", ge=0, le=2**31 - 1)] = None,
    to_step: Annotated[int | None, Query(alias="to", ge=0, le=2**31 - 1)] = None,
    resolution: Annotated[
        int, Query(ge=1, le=10_000, description="The most points of one curve.")
    ] = 1000,
) -> MetricList:
    """Read what was measured, by name and step."""
    jobs.get(session, caller.tenant_id, job_id)
    points = events.metrics(
        session, caller.tenant_id, job_id, name=name, from_step=from_step, to_step=to_step
    )
    kept = job_answers.thin_out(points, resolution)
    return MetricList(
        data=[job_answers.metric_point(point) for point in kept],
        names=events.metric_names(session, caller.tenant_id, job_id),
    )


@router.get(
    "/{job_id}/checkpoints",
    summary="List the checkpoints of a job",
    response_model=Page[CheckpointAnswer],
    responses=error_answers("job_not_found"),
)
def list_checkpoints(
    job_id: Id, caller: Reader, session: ReadDep, parts: PartsDep
) -> Page[CheckpointAnswer]:
    """List what a killed job would go on from, and what can be asked meanwhile, the furthest first.

    A job keeps its newest two, a failed job too, and none once it has succeeded or was cancelled.
    Send `id` as `adapter_id` to `POST /predict`; publish what is to stay.
    """
    rows = checkpoints.list_of(session, parts.store, caller.tenant_id, job_id)
    return Page.of(rows, has_more=False)


@router.post(
    "/{job_id}/checkpoints/{checkpoint_id}:publish",
    status_code=201,
    summary="Publish a checkpoint",
    response_model=AdapterAnswer,
    openapi_extra={
        "requestBody": {"content": {"application/json": {"examples": _PUBLISH_EXAMPLES}}},
    },
    responses={
        200: {"model": AdapterAnswer, "description": "The same request came before: its adapter."},
        **error_answers(
            "job_not_found",
            "checkpoint_not_found",
            "conflict",
            "name_taken",
            "idempotency_mismatch",
            "storage_unavailable",
            *JSON_BODY,
        ),
    },
)
def publish_checkpoint(
    job_id: Id,
    checkpoint_id: Id,
    response: Response,
    caller: Writer,
    unit: UnitDep,
    parts: PartsDep,
    asked: PublishRequest | None = None,
    idempotency_key: IdempotencyKey = None,
) -> AdapterAnswer:
    """Make an adapter of a checkpoint, which stays whatever becomes of the job.

    It holds the weights of that very step. It has no certificate and no test (`certificate` is
    null), and `metrics` says what was measured on the way, with the step of each; the job goes on
    and publishes its own adapter. Refused for a job that failed with `certificate_failed`.
    """
    row, is_new = checkpoints.publish(
        unit,
        parts,
        tenant_id=caller.tenant_id,
        job_id=job_id,
        checkpoint_id=checkpoint_id,
        asked=asked or PublishRequest(),
        idempotency_key=idempotency_key,
    )
    response.status_code = 201 if is_new else 200
    response.headers["location"] = f"/adapters/{row.id}"
    return adapters.as_answers(unit.session, caller.tenant_id, [row])[0]
