"""``/datasets``: send rows, see what was found in them."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

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
from app.receiving import receive_upload, staging_folder
from app.schemas.datasets import (
    DatasetAnswer,
    PreviewAnswer,
    PreviewRequest,
    RowPage,
)
from app.schemas.errors import FORM_BODY, JSON_BODY, error_answers
from app.schemas.forms import FILE, TEXT, described, form_body
from app.schemas.shared import Deleted, Page
from app.services import datasets as service
from app.services import previews, uploads
from core.db import datasets
from core.states import DatasetStatus
from peft_engine.configs.model import TaskName

router = APIRouter(prefix="/datasets", tags=["data sets"], route_class=GuardedRoute)

_CREATE_BODY = form_body(
    {
        "file": described(FILE, "JSONL, a JSON array, CSV, TSV or Parquet; gzip of these."),
        "validation_file": FILE,
        "test_file": FILE,
        "name": TEXT,
        "task": TEXT,
        "format": TEXT,
        "mapping": described(TEXT, 'JSON: `{"text": "sentence", "label": "target"}`'),
        "split": described(TEXT, "JSON: `fractions` of the splits, `seed`, `column`."),
    },
    or_json="DatasetCreate",
)


@router.post(
    "",
    status_code=201,
    summary="Create a data set",
    response_model=DatasetAnswer,
    openapi_extra={"requestBody": _CREATE_BODY},
    responses={
        200: {
            "model": DatasetAnswer,
            "description": "The same bytes were sent before: that data set.",
        },
        202: {
            "model": DatasetAnswer,
            "description": "A large file: it is validated in the background.",
        },
        **error_answers("dataset_invalid", "invalid_json", "idempotency_mismatch", *FORM_BODY),
    },
)
async def create_dataset(
    request: Request,
    response: Response,
    caller: Writer,
    parts: PartsDep,
    idempotency_key: IdempotencyKey = None,
) -> DatasetAnswer:
    """Send rows as a file (multipart) or as JSON `records`.

    Every row is checked. A small file is answered at once: 201 with the report, or 400 with
    **every** problem in `details` as `{file, line, column, code, message, fix}`. A large file is
    answered 202 with status `validating`; ask `GET /datasets/{id}` until it is `ready` or
    `invalid`. Splits without a file of their own are cut from the main file (0.8 / 0.1 / 0.1,
    stratified, seeded); a column named `split` is obeyed.
    """
    async with staging_folder(parts.settings) as folder:
        upload = await receive_upload(
            request,
            folder=folder,
            settings=parts.settings,
            idempotency_key=idempotency_key,
        )
        row, status = await run_in_threadpool(
            uploads.take_in,
            parts,
            tenant_id=caller.tenant_id,
            upload=upload,
            folder=folder / "splits",
        )
    response.status_code = status
    response.headers["location"] = f"/datasets/{row.id}"
    return service.as_answer(row)


@router.get(
    "", summary="List data sets", response_model=Page[DatasetAnswer], responses=error_answers()
)
def list_datasets(
    caller: Reader,
    session: ReadDep,
    status: DatasetStatus | None = None,
    task: TaskName | None = None,
    name: Annotated[str | None, Query(pattern=r"^[\x20-\x7e]{1,64}$")] = None,
    limit: Limit = 20,
    after: After = None,
) -> Page[DatasetAnswer]:
    """List your data sets, newest first; single problems show `GET /datasets/{id}`."""
    page = datasets.list_page(
        session, caller.tenant_id, status=status, task=task, name=name, limit=limit, after=after
    )
    answers = [service.as_answer(row, in_list=True) for row in page.items]
    return Page.of(answers, has_more=page.has_more)


@router.get(
    "/{dataset_id}",
    summary="Get a data set",
    response_model=DatasetAnswer,
    responses=error_answers("dataset_not_found"),
)
def get_dataset(dataset_id: Id, caller: Reader, session: ReadDep) -> DatasetAnswer:
    """Show a data set with the report of its validation."""
    return service.as_answer(datasets.get(session, caller.tenant_id, dataset_id))


@router.get(
    "/{dataset_id}/rows",
    summary="Read rows",
    response_model=RowPage,
    responses=error_answers("dataset_not_found", "dataset_not_ready", "not_found"),
)
def list_rows(
    dataset_id: Id,
    caller: Reader,
    session: ReadDep,
    parts: PartsDep,
    split: Literal["train", "validation", "test"] = "train",
    limit: Limit = 20,
    after: Annotated[
        int, Query(ge=0, le=2**31 - 1, description="`next_after` of the page before.")
    ] = 0,
) -> RowPage:
    """Read the rows of one split as training sees them, in their order."""
    return service.read_rows(
        session,
        parts.store,
        tenant_id=caller.tenant_id,
        dataset_id=dataset_id,
        split=split,
        after=after,
        limit=limit,
    )


@router.post(
    "/{dataset_id}:preview",
    summary="See rows as training reads them",
    response_model=PreviewAnswer,
    openapi_extra={
        "requestBody": {
            "content": {
                "application/json": {
                    "examples": {
                        "first": {
                            "summary": "The first rows",
                            "value": {"base_model": "smollm2", "limit": 3, "max_length": 256},
                        }
                    }
                }
            }
        }
    },
    responses=error_answers(
        "dataset_not_found",
        "dataset_not_ready",
        "not_found",
        "base_not_found",
        "base_not_served",
        "task_not_supported",
        "nothing_to_learn",
        "too_long",
        "base_loading",
        "inference_unavailable",
        "storage_unavailable",
        *JSON_BODY,
    ),
)
async def preview_rows(
    dataset_id: Id, asked: PreviewRequest, caller: Reader, parts: PartsDep
) -> PreviewAnswer:
    """Show the tokens of rows on a base, which of them are learned, and how many are cut.

    It is the encoding of a job: what is refused here would fail the job.
    """
    return await previews.preview(
        parts, tenant_id=caller.tenant_id, dataset_id=dataset_id, asked=asked
    )


@router.delete(
    "/{dataset_id}",
    summary="Delete a data set",
    response_model=Deleted,
    responses=error_answers("dataset_not_found", "dataset_in_use"),
)
def delete_dataset(dataset_id: Id, caller: Writer, unit: UnitDep, parts: PartsDep) -> Deleted:
    """Delete the rows. Refused while a job that is not finished needs them; adapters stay."""
    service.delete(unit, parts.store, tenant_id=caller.tenant_id, dataset_id=dataset_id)
    return Deleted(id=dataset_id, object="dataset")
