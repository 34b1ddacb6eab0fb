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
    "parent_adapter_id",
    "created_at",
)

RELATIVES = ("is", "adapter", "adapter_id", "job_id", "dataset_id", "deleted", "created_at")

Reference = Annotated[str, typer.Argument(help="Id, name, name@version, or alias.")]


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
    adapter: Reference,
    as_json: AsJson = False,
) -> None:
    """Shows one adapter."""
    with connect(context) as client:
        row = client.get(f"/adapters/{adapter}")
    show_json(row) if as_json else show_fields(row, FIELDS)


@app.command("lineage")
def lineage(context: typer.Context, adapter: Reference, as_json: AsJson = False) -> None:
    """Shows what an adapter was continued from, and what was continued from it."""
    with connect(context) as client:
        found = client.get(f"/adapters/{adapter}/lineage")
    if as_json:
        show_json(found)
        return
    rows = [{"is": "ancestor", **row} for row in reversed(found["ancestors"])]
    rows.append({"is": "itself", **found["adapter"]})
    rows += [{"is": "child", **row} for row in found["children"]]
    show_table(rows, RELATIVES)
