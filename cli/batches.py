"""`tunery batches`: many requests in one file, answered by and by."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.client import Client, RequestFailedError
from cli.connection import connect
from cli.output import (
    AsJson,
    Limit,
    as_text,
    leave,
    show_fields,
    show_json,
    stderr,
    stdout,
)
from cli.progress import follow, watching
from cli.resources import show_list

app = typer.Typer(help="Batches of requests.", no_args_is_help=True)

COLUMNS = ("id", "status", "endpoint", "requests", "created_at")
FIELDS = (
    *COLUMNS[:4],
    "input_file_id",
    "output_file_id",
    "error_file_id",
    "metadata",
    "created_at",
    "expires_at",
)
ENDED = ("completed", "failed", "expired", "cancelled")
SHOWN_ERRORS = 20

BatchId = Annotated[str, typer.Argument(help="Which batch.")]


@app.command("create")
def create_batch(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="JSONL of custom_id, method, url and body.")],
    endpoint: Annotated[
        str, typer.Option(help="/predict, /v1/chat/completions, /v1/completions, /v1/embeddings.")
    ] = "/predict",
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", help="A label, e.g. team=care.")
    ] = None,
    watch: Annotated[bool, typer.Option(help="Wait for its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Sends a file of requests and has all of them answered."""
    body: dict[str, Any] = {"endpoint": endpoint, "completion_window": "24h"}
    if metadata:
        body["metadata"] = dict(_read_label(label) for label in metadata)
    with connect(context) as client:
        sent = client.upload({"file": file}, {"purpose": "batch"}, path="/v1/files")
        batch = client.post("/v1/batches", {**body, "input_file_id": sent["id"]})
        if watch:
            _watch(client, batch["id"], as_json=as_json)
        else:
            _show(batch, as_json=as_json)


@app.command("list")
def list_batches(context: typer.Context, limit: Limit = 20, as_json: AsJson = False) -> None:
    """Lists batches."""
    show_list(context, "/v1/batches", COLUMNS, limit=limit, as_json=as_json, as_row=_for_people)


@app.command("get")
def get_batch(context: typer.Context, batch_id: BatchId, as_json: AsJson = False) -> None:
    """Shows one batch, and what is wrong with its file."""
    with connect(context) as client:
        batch = client.get(f"/v1/batches/{batch_id}")
    _show(batch, as_json=as_json)


@app.command("watch")
def watch_batch(context: typer.Context, batch_id: BatchId, as_json: AsJson = False) -> None:
    """Shows the progress of a batch until its end; exit code 1 when it was not completed."""
    with connect(context) as client:
        _watch(client, batch_id, as_json=as_json)


@app.command("cancel")
def cancel_batch(context: typer.Context, batch_id: BatchId, as_json: AsJson = False) -> None:
    """Asks no further request; what is answered by then stands in the files."""
    with connect(context) as client:
        batch = client.post(f"/v1/batches/{batch_id}/cancel")
    _show(batch, as_json=as_json)


@app.command("output")
def download_output(
    context: typer.Context,
    batch_id: BatchId,
    target: Annotated[Path, typer.Argument(help="The file to write.")],
    errors: Annotated[
        bool, typer.Option("--errors", help="What was refused or not asked, instead.")
    ] = False,
) -> None:
    """Downloads the answers of a batch that has ended."""
    with connect(context) as client:
        batch = client.get(f"/v1/batches/{batch_id}")
        file_id = _file_of(batch, "error" if errors else "output")
        size = client.download(f"/v1/files/{file_id}/content", target)
    stdout.print(f"{target}: {size} bytes")


def _file_of(batch: Mapping[str, Any], kind: str) -> str:
    file_id = batch[f"{kind}_file_id"]
    if file_id is None:
        reason = f"The batch is {batch['status']} and has no {kind} file"
        raise RequestFailedError(reason, code="no_file")
    return str(file_id)


def _watch(client: Client, batch_id: str, *, as_json: bool) -> None:
    seen: dict[str, Any] = {}

    def poll() -> dict[str, Any]:
        seen.update(client.get(f"/v1/batches/{batch_id}"))
        counts = seen["request_counts"]
        done = counts["completed"] + counts["failed"]
        return {
            "status": seen["status"],
            "progress": {"step": done, "total_steps": counts["total"] or None},
        }

    with watching("batches", batch_id, console=stderr):
        follow(poll, console=stderr, finished=ENDED, unit="request")
    _show(seen, as_json=as_json)
    if seen["status"] != "completed":
        leave(1)


def _show(batch: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show_json(batch)
        return
    show_fields(_for_people(batch), FIELDS)
    errors = batch["errors"] or {"data": [], "x_total": 0}
    for error in errors["data"][:SHOWN_ERRORS]:
        where = "file" if error["line"] is None else f"line {error['line']}"
        param = f"  [{error['param']}]" if error["param"] else ""
        stdout.print(f"  {where}: {as_text(error['message'] + param)}")
    if errors["x_total"] > SHOWN_ERRORS:
        stdout.print(f"  … and {errors['x_total'] - SHOWN_ERRORS} more (--json shows up to 1000)")


def _for_people(batch: Mapping[str, Any]) -> dict[str, Any]:
    counts = batch["request_counts"]
    done = f"{counts['completed']} of {counts['total']}"
    refused = f", {counts['failed']} refused" if counts["failed"] else ""
    moments = {name: _as_moment(batch[name]) for name in ("created_at", "expires_at")}
    return {**batch, **moments, "requests": f"{done}{refused}"}


def _as_moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _read_label(label: str) -> tuple[str, str]:
    name, equals, value = label.partition("=")
    if not equals:
        reason = f"--metadata takes NAME=VALUE, not {label!r}"
        raise RequestFailedError(reason, code="bad_option")
    return name, value
