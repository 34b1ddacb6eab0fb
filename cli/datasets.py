"""`tunery datasets`: upload and look at data sets."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.client import Client
from cli.connection import connect
from cli.fields import read_setting
from cli.output import AsJson, Limit, as_text, leave, show_fields, show_json, stderr, stdout
from cli.progress import left_by_ctrl_c, wait_for
from cli.resources import show_deleted, show_list, show_one

app = typer.Typer(help="Data sets.", no_args_is_help=True)

COLUMNS = ("id", "name", "status", "task", "rows", "bytes", "created_at")
FIELDS = (*COLUMNS[:5], "splits", "bytes", "sha256", "created_at", "error")
SHOWN_PROBLEMS = 20

_BROKEN_OFF = (
    "The upload broke off. Of a part nothing is left; if all had arrived, the same command finds "
    "that data set and makes no second one."
)

TestFile = Annotated[Path | None, typer.Option("--test", help="Rows to test on, never trained.")]

Setting = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Any other field, e.g. mapping.text=sentence, split.seed=1 or format=csv."
    ),
]


@app.command()
def upload(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="JSONL, CSV or Parquet, plain or gzip.")],
    name: Annotated[str | None, typer.Option(help="Its name; else that of the file.")] = None,
    task: Annotated[str | None, typer.Option(help="Its task; else found from the fields.")] = None,
    validation: Annotated[Path | None, typer.Option(help="Rows to validate on.")] = None,
    test: TestFile = None,
    settings: Setting = None,
    as_json: AsJson = False,
) -> None:
    """Uploads a data set; splits it when no files for validation and test are given."""
    named = {"file": file, "validation_file": validation, "test_file": test}
    files = {part: path for part, path in named.items() if path}
    fields: dict[str, Any] = {
        key: value for key, value in (("name", name), ("task", task)) if value
    }
    for setting in settings or []:
        read_setting(fields, setting)
    with connect(context) as client:
        with left_by_ctrl_c(_BROKEN_OFF, console=stderr):
            sent = _send(client, files, fields)
        again, away = (f"`tunery datasets {verb} {sent['id']}`" for verb in ("get", "delete"))
        told = f"{sent['id']} is validated all the same: {again} shows it, {away} removes it."
        with left_by_ctrl_c(told, console=stderr):
            row = _validated(client, sent)
    show_json(row) if as_json else show_dataset(row)
    if row["status"] == "invalid":
        leave(1)


@app.command("list")
def list_datasets(context: typer.Context, limit: Limit = 20, as_json: AsJson = False) -> None:
    """Lists data sets."""
    show_list(context, "/datasets", COLUMNS, limit=limit, as_json=as_json)


@app.command("get")
def get_dataset(context: typer.Context, dataset_id: str, as_json: AsJson = False) -> None:
    """Shows one data set and what is wrong with it."""
    show_one(context, f"/datasets/{dataset_id}", show_dataset, as_json=as_json)


@app.command("delete")
def delete_dataset(
    context: typer.Context,
    dataset_id: Annotated[str, typer.Argument(help="Which data set.")],
    as_json: AsJson = False,
) -> None:
    """Deletes the rows; refused while a job needs them. Adapters made from them stay."""
    show_deleted(context, f"/datasets/{dataset_id}", as_json=as_json)


def upload_files(
    client: Client, files: dict[str, Path], fields: Mapping[str, Any]
) -> dict[str, Any]:
    """Uploads a data set and waits until it is validated.

    Args:
        client: Of the service.
        files: `file`, and where wanted `validation_file` and `test_file`.
        fields: `name`, `task` and whatever else the form takes; those missing are found.

    Returns:
        The data set, ready or invalid.
    """
    return _validated(client, _send(client, files, fields))


def _send(client: Client, files: dict[str, Path], fields: Mapping[str, Any]) -> dict[str, Any]:
    form = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in fields.items()
    }
    sent: dict[str, Any] = client.upload(files, form)
    return sent


def _validated(client: Client, row: dict[str, Any]) -> dict[str, Any]:
    return wait_for(
        lambda: client.get(f"/datasets/{row['id']}"),
        until=lambda seen: seen["status"] != "validating",
    )


def show_dataset(row: dict[str, Any]) -> None:
    """Prints a data set and the first problems of its report.

    Args:
        row: The data set.
    """
    show_fields(row, FIELDS)
    report = row.get("report") or {}
    problems = report.get("problems") or []
    for problem in problems[:SHOWN_PROBLEMS]:
        line, column = problem.get("line"), problem.get("column")
        where = f"line {line}" + (f", {column}" if column else "")
        what = f"{problem['message']} {problem.get('fix') or ''}"
        stdout.print(f"  {where}: {as_text(what)}")
    if len(problems) > SHOWN_PROBLEMS:
        stdout.print(f"  … and {len(problems) - SHOWN_PROBLEMS} more (--json shows all)")
