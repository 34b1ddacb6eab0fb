"""`tunery sweeps`: try out fields of a job."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.client import RequestFailedError
from cli.connection import connect
from cli.fields import read_object, read_setting
from cli.output import AsJson, Limit, leave, show_fields, show_json, show_table, stderr, stdout
from cli.progress import follow_sweep, watching
from cli.report import show_test
from cli.resources import show_list, show_one

app = typer.Typer(help="Searches over the fields of a job.", no_args_is_help=True)

COLUMNS = ("id", "name", "status", "strategy", "counts", "created_at")
FIELDS = (
    "id",
    "name",
    "status",
    "strategy",
    "metric",
    "counts",
    "max_jobs",
    "error",
    "created_at",
    "finished_at",
)
TRIAL_COLUMNS = ("number", "status", "value", "behind", "interval", "best_share", "best_step")

DEFAULT_BASE = "minilm"

SweepId = Annotated[str, typer.Argument(help="Which sweep.")]


@app.command("create")
def create_sweep(
    context: typer.Context,
    dataset_id: Annotated[str, typer.Argument(help="A data set that is ready.")],
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            help='A field and what it may be: method.r=[4,16], or FIELD={"min":1e-4,"max":1e-2,'
            '"log":true}.',
        ),
    ] = None,
    base_model: Annotated[
        str | None, typer.Option("--base-model", "-b", help="A name of GET /models; else minilm.")
    ] = None,
    strategy: Annotated[str | None, typer.Option(help="grid, random or tpe; else grid.")] = None,
    max_jobs: Annotated[int | None, typer.Option(help="Most trials.")] = None,
    max_parallel: Annotated[int | None, typer.Option(help="Most at a time; else 4.")] = None,
    metric: Annotated[str | None, typer.Option(help="On validation; else the task's.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the adapter.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any field of the job, e.g. training.epochs=1 (JSON or text)."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="A sweep as JSON; the options win over it.")
    ] = None,
    watch: Annotated[bool, typer.Option(help="Wait for its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Starts a sweep: each trial is a job, and the best on validation is tested once."""
    body = read_object(file) if file else {}
    job = {"base_model": DEFAULT_BASE, **body.get("job", {}), "dataset_id": dataset_id}
    named = {"base_model": base_model, "adapter_name": name}
    job |= {field: value for field, value in named.items() if value is not None}
    for setting in settings or []:
        read_setting(job, setting)
    said = {
        "strategy": strategy,
        "max_jobs": max_jobs,
        "max_parallel": max_parallel,
        "metric": metric,
    }
    body |= {field: value for field, value in said.items() if value is not None}
    fields = {**body.get("search", {}), **dict(_read_search(own) for own in search or [])}
    body |= {"job": job, "search": fields}
    with connect(context) as client:
        sweep = client.post("/sweeps", body)
    if watch:
        _watch(context, sweep["id"], as_json=as_json)
    else:
        show_json(sweep) if as_json else show_sweep(sweep)


@app.command("list")
def list_sweeps(context: typer.Context, limit: Limit = 20, as_json: AsJson = False) -> None:
    """Lists sweeps."""
    show_list(context, "/sweeps", COLUMNS, limit=limit, as_json=as_json)


@app.command("get")
def get_sweep(context: typer.Context, sweep_id: SweepId, as_json: AsJson = False) -> None:
    """Shows a sweep: its trials, which is best and how clearly, and the test of that one."""
    show_one(context, f"/sweeps/{sweep_id}", show_sweep, as_json=as_json)


@app.command("watch")
def watch_sweep(context: typer.Context, sweep_id: SweepId, as_json: AsJson = False) -> None:
    """Shows how a sweep goes until its end; exit code 1 when it did not succeed."""
    _watch(context, sweep_id, as_json=as_json)


@app.command("cancel")
def cancel_sweep(context: typer.Context, sweep_id: SweepId, as_json: AsJson = False) -> None:
    """Cancels a sweep and its jobs."""
    with connect(context) as client:
        sweep = client.post(f"/sweeps/{sweep_id}:cancel")
    show_json(sweep) if as_json else show_sweep(sweep)


def show_sweep(sweep: dict[str, Any]) -> None:
    """Prints a sweep as a person reads it.

    Args:
        sweep: The sweep.
    """
    show_fields(sweep, FIELDS)
    comparison = sweep.get("comparison") or {}
    standing = {own["number"]: own for own in comparison.get("standing", [])}
    searched = sorted(sweep["search"])
    rows = [_as_row(trial, standing.get(trial["number"], {})) for trial in sweep["trials"] or []]
    if rows:
        stdout.print()
        show_table(rows, (*TRIAL_COLUMNS[:1], *searched, *TRIAL_COLUMNS[1:], "seconds", "job_id"))
    if comparison:
        stdout.print()
        stdout.print(comparison["verdict"], markup=False, highlight=False)
    test = sweep.get("test")
    if test is not None:
        stdout.print()
        show_fields(test, ("job_id", "status", "adapter_id", "same_digest"))
        if test.get("metrics"):
            show_test({"metrics": {"test": test["metrics"]}})


def _as_row(trial: dict[str, Any], standing: dict[str, Any]) -> dict[str, Any]:
    interval = standing.get("confidence_interval")
    return {
        **trial,
        **trial["params"],
        "behind": standing.get("behind"),
        "interval": interval and f"{interval[0]:+.3g} … {interval[1]:+.3g}",
        "best_share": standing.get("best_share"),
    }


def _watch(context: typer.Context, sweep_id: str, *, as_json: bool) -> None:
    with connect(context) as client, watching("sweeps", sweep_id, console=stderr):
        sweep = follow_sweep(client, sweep_id, console=stderr)
    show_json(sweep) if as_json else show_sweep(sweep)
    if sweep["status"] != "succeeded":
        leave(1)


def _read_search(text: str) -> tuple[str, Any]:
    """The field and its values; one value alone is a list of one.

    Raises:
        RequestFailedError: It is not FIELD=JSON.
    """
    path, _, said = text.partition("=")
    try:
        value = json.loads(said)
    except ValueError as error:
        reason = f"--search takes FIELD=[…] or FIELD={{…}} in JSON, not {text!r}"
        raise RequestFailedError(reason, code="bad_option") from error
    return path, value if isinstance(value, dict | list) else [value]
