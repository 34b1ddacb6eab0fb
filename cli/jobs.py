"""`tunery jobs`: train."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.client import Client, RequestFailedError
from cli.connection import connect
from cli.estimates import show_estimate
from cli.fields import read_object, read_setting
from cli.output import (
    AsJson,
    Limit,
    leave,
    show_fields,
    show_json,
    show_table,
    stderr,
)
from cli.progress import follow, follow_job, left_by_ctrl_c, watching
from cli.report import show_test
from cli.resources import show_list, show_one

app = typer.Typer(help="Training jobs.", no_args_is_help=True)

COLUMNS = ("id", "status", "base_model", "task", "adapter_name", "created_at")
FIELDS = (
    *COLUMNS[:5],
    "phase",
    "reason",
    "queue_position",
    "progress",
    "attempt",
    "trainable_parameters",
    "base_parameters",
    "adapter_id",
    "error",
    "created_at",
    "started_at",
    "finished_at",
)

MANIFEST_FIELDS = (
    "job_id",
    "status",
    "dataset",
    "base",
    "parent",
    "adapter",
    "environment",
    "reproduces",
    "spec",
)

CHECKPOINT_COLUMNS = ("id", "step", "bytes", "can_predict", "validation", "created_at")
PUBLISHED_FIELDS = ("id", "reference", "task", "base_model", "digest", "metrics", "origin")

# What was asked, defaults filled in; part of the job's spec.
ASKED = ("method", "base", "training")
EVENT_COLUMNS = ("seq", "created_at", "event", "message")

DEFAULT_BASE = "minilm"
JobId = Annotated[str, typer.Argument(help="Which job.")]
BaseModel = Annotated[
    str | None,
    typer.Option("--base-model", "-b", help="A name of GET /models; else the parent's, or minilm."),
]
DatasetId = Annotated[str, typer.Argument(help="A data set that is ready.")]
Method = Annotated[str | None, typer.Option(help="Name of a method; else the parent's, or lora.")]
Quantization = Annotated[
    str | None, typer.Option(help="int8, int8-weight-only, int4, nf4, fp16: of the base.")
]
Parent = Annotated[
    str | None, typer.Option(help="Continue from this adapter: id, name, name@version, or alias.")
]
Setting = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any field of the job, e.g. training.epochs=1 (JSON or text)."),
]
Spec = Annotated[
    Path | None, typer.Option("--file", help="A job as JSON; the options win over it.")
]


@app.command("create")
def create_job(
    context: typer.Context,
    dataset_id: DatasetId,
    base_model: BaseModel = None,
    method: Method = None,
    quantization: Quantization = None,
    parent: Parent = None,
    name: Annotated[str | None, typer.Option(help="Name of the adapter.")] = None,
    settings: Setting = None,
    file: Spec = None,
    start: Annotated[
        bool, typer.Option("--start/--no-start", help="Or check it, and wait for jobs start.")
    ] = True,
    watch: Annotated[bool, typer.Option(help="Wait for its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Starts a job; everything not said has a default, which the answer shows."""
    body = _wish_of(
        dataset_id,
        file,
        settings,
        quantization,
        base_model=base_model,
        parent_adapter_id=parent,
        method=method,
        adapter_name=name,
        auto_start=None if start else False,
    )
    with connect(context) as client:
        job = _post_wish(client, "/jobs", body)
    if watch:
        _watch(context, job["id"], as_json=as_json)
    else:
        show_json(job) if as_json else show_fields({**job["spec"], **job}, (*FIELDS, *ASKED))


@app.command("estimate")
def estimate_job(
    context: typer.Context,
    dataset_id: DatasetId,
    base_model: BaseModel = None,
    method: Method = None,
    quantization: Quantization = None,
    parent: Parent = None,
    settings: Setting = None,
    file: Spec = None,
    as_json: AsJson = False,
) -> None:
    """Measures whether a job fits and how long it takes, without starting it."""
    body = _wish_of(
        dataset_id,
        file,
        settings,
        quantization,
        base_model=base_model,
        parent_adapter_id=parent,
        method=method,
    )
    with connect(context) as client:
        found = _post_wish(client, "/jobs:estimate", body)
        path = f"/estimates/{found['id']}"
        with left_by_ctrl_c(f"It is measured all the same: GET {path} tells.", console=stderr):
            found = follow(lambda: client.get(path), console=stderr)
    show_json(found) if as_json else show_estimate(found)
    if found["status"] != "succeeded":
        leave(1)


@app.command("list")
def list_jobs(
    context: typer.Context,
    limit: Limit = 20,
    status: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    as_json: AsJson = False,
) -> None:
    """Lists jobs."""
    show_list(context, "/jobs", COLUMNS, limit=limit, as_json=as_json, status=status)


@app.command("get")
def get_job(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Shows one job, and whether it helped."""
    show_one(context, f"/jobs/{job_id}", show_job, as_json=as_json)


@app.command("events")
def list_events(
    context: typer.Context,
    job_id: JobId,
    after: Annotated[int, typer.Option(min=0, help="Only those after this number.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Lists what happened to a job, oldest first."""
    rows: list[dict[str, Any]] = []
    has_more = True
    with connect(context) as client:
        while has_more:
            page = client.get(f"/jobs/{job_id}/events", after=after, limit=1000)
            rows += page["data"]
            has_more, after = page["has_more"], page["last_seq"]
    show_json(rows) if as_json else show_table(rows, EVENT_COLUMNS)


@app.command("watch")
def watch_job(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Shows the progress of a job until its end; exit code 1 when it did not succeed."""
    _watch(context, job_id, as_json=as_json)


@app.command("cancel")
def cancel_job(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Cancels a job; a running one stops at its next step."""
    _wish(context, job_id, "cancel", as_json=as_json)


@app.command("pause")
def pause_job(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Holds a job back; a running one keeps a checkpoint first."""
    _wish(context, job_id, "pause", as_json=as_json)


@app.command("resume")
def resume_job(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Queues a paused job again; it goes on from its checkpoint."""
    _wish(context, job_id, "resume", as_json=as_json)


@app.command("start")
def start_job(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Queues a job that was created with --no-start."""
    _wish(context, job_id, "start", as_json=as_json)


@app.command("reproduce")
def reproduce_job(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Queues a job that succeeded once more; its manifest tells whether it came out equal."""
    _wish(context, job_id, "reproduce", as_json=as_json)


@app.command("manifest")
def show_manifest(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Shows what decides what a job makes, and whether one that repeats another came out equal."""
    show_one(
        context,
        f"/jobs/{job_id}/manifest",
        lambda manifest: show_fields(manifest, MANIFEST_FIELDS),
        as_json=as_json,
    )


@app.command("checkpoints")
def list_checkpoints(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Lists the steps of a job that are kept, the furthest first; predict takes their ids."""
    with connect(context) as client:
        rows = client.get(f"/jobs/{job_id}/checkpoints")["data"]
    if as_json:
        show_json(rows)
        return
    show_table([_with_measured(row) for row in rows], CHECKPOINT_COLUMNS)


@app.command("publish")
def publish_checkpoint(
    context: typer.Context,
    job_id: JobId,
    checkpoint: Annotated[
        str | None, typer.Argument(help="Which checkpoint; else the furthest.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the adapter; else the job's and the step.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Makes an adapter of a checkpoint, which stays; it has neither certificate nor test."""
    with connect(context) as client:
        chosen = checkpoint or _furthest(client, job_id)
        row = client.post(f"/jobs/{job_id}/checkpoints/{chosen}:publish", {"name": name})
    show_json(row) if as_json else show_fields(row, PUBLISHED_FIELDS)


@app.command("retry")
def retry_job(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Queues a failed job again; it goes on from its last checkpoint."""
    _wish(context, job_id, "retry", as_json=as_json)


def _wish_of(
    dataset_id: str,
    file: Path | None,
    settings: list[str] | None,
    quantization: str | None,
    **said: Any,
) -> dict[str, Any]:
    """The job as it is asked for: the file, then the options, then single fields."""
    body = read_object(file) if file else {}
    body |= {"dataset_id": dataset_id}
    body |= {field: value for field, value in said.items() if value is not None}
    if quantization:
        body["base"] = {**body.get("base", {}), "quantization": quantization}
    for setting in settings or []:
        read_setting(body, setting)
    return body


def _wish(context: typer.Context, job_id: str, wish: str, *, as_json: bool) -> None:
    with connect(context) as client:
        job = client.post(f"/jobs/{job_id}:{wish}")
    show_json(job) if as_json else show_job(job)


def _furthest(client: Client, job_id: str) -> str:
    """The checkpoint of the furthest step.

    Raises:
        RequestFailedError: There is none.
    """
    rows = client.get(f"/jobs/{job_id}/checkpoints")["data"]
    if not rows:
        raise RequestFailedError(
            f"job {job_id} has no checkpoint now: it keeps its newest two while it runs, and none "
            "once it has succeeded or was cancelled",
            code="checkpoint_not_found",
        )
    return str(rows[0]["id"])


def _with_measured(row: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint with what validation found in a few words."""
    found = row["validation"]
    if found is None:
        return row
    known = {name: value for name, value in found["metrics"].items() if value is not None}
    values = ", ".join(f"{name} {value:.4g}" for name, value in known.items())
    return {**row, "validation": f"{values} (step {found['step']})"}


def _post_wish(client: Client, path: str, body: dict[str, Any]) -> Any:
    """Send a job as it is asked for, on the base that is meant where none is named."""
    if "base_model" not in body:
        body = {**body, "base_model": _default_base(client, body)}
    return client.post(path, body)


def _default_base(client: Client, body: dict[str, Any]) -> str:
    """The base of the parent, if the job continues from one."""
    if body.get("parent_adapter_id") is None:
        return DEFAULT_BASE
    return str(client.get(f"/adapters/{body['parent_adapter_id']}")["base_model"])


def show_job(job: dict[str, Any]) -> None:
    """Prints a job as a person reads it: its state, and the table of its test instead of numbers.

    Args:
        job: The job.
    """
    progress = job.get("progress")
    done = progress and f"step {progress.get('step')} of {progress.get('total_steps')}"
    show_fields({**job, "progress": done}, FIELDS)
    show_test(job)


def _watch(context: typer.Context, job_id: str, *, as_json: bool) -> None:
    with connect(context) as client, watching("jobs", job_id, console=stderr):
        job = follow_job(client, job_id, console=stderr)
    show_json(job) if as_json else show_job(job)
    if job["status"] != "succeeded":
        leave(1)
