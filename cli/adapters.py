"""`tunery adapters`: what was trained."""

from typing import Annotated

import typer

from cli.connection import connect
from cli.output import AsJson, Limit, show_fields, show_json, show_table

app = typer.Typer(help="Trained adapters.", no_args_is_help=True)

COLUMNS = ("id", "reference", "task", "base_model", "parameters", "bytes", "created_at")
FIELDS = (
    *COLUMNS[:2],
    "aliases",
    *COLUMNS[2:5],
    "labels",
    "methods",
    "bytes",
    "digest",
    "base_fingerprint",
    "metrics",
    "certificate",
    "job_id",
    "dataset_id",
    "created_at",
)


@app.command("list")
def list_adapters(context: typer.Context, limit: Limit = 20, as_json: AsJson = False) -> None:
    """Lists adapters."""
    with connect(context) as client:
        rows = list(client.pages("/adapters", limit=limit))
    show_json(rows) if as_json else show_table(rows, COLUMNS)


@app.command("show")
@app.command("get", hidden=True)
def get_adapter(
    context: typer.Context,
    adapter: Annotated[str, typer.Argument(help="Id, name, name@version, or alias.")],
    as_json: AsJson = False,
) -> None:
    """Shows one adapter."""
    with connect(context) as client:
        row = client.get(f"/adapters/{adapter}")
    show_json(row) if as_json else show_fields(row, FIELDS)
