"""`tunery aliases`: names that point to adapters."""

from typing import Annotated, Any

import typer

from cli.connection import connect
from cli.output import AsJson, Limit, show_fields, show_json, show_table
from cli.resources import show_list

app = typer.Typer(help="Names that point to adapters and can be moved.", no_args_is_help=True)

COLUMNS = ("name", "adapter", "adapter_id", "revision", "updated_at")
MOVES = ("revision", "action", "adapter", "adapter_id", "restored_revision", "created_at")

Alias = Annotated[str, typer.Argument(help="Name of the alias.")]
Expected = Annotated[
    str | None,
    typer.Option("--expect", help="Only if it points to this adapter now; 'none': only if new."),
]


@app.command("list")
def list_aliases(context: typer.Context, limit: Limit = 20, as_json: AsJson = False) -> None:
    """Lists aliases."""
    show_list(context, "/aliases", COLUMNS, limit=limit, as_json=as_json)


@app.command("set")
def set_alias(
    context: typer.Context,
    alias: Alias,
    adapter: Annotated[str, typer.Argument(help="Id, name, name@version, or another alias.")],
    expect: Expected = None,
    gate: Annotated[
        bool, typer.Option("--gate", help="Only if it is not worse on the same test rows.")
    ] = False,
    metric: Annotated[str | None, typer.Option(help="Of the gate; implies --gate.")] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(min=0, help="Shown to be at most so much worse; implies --gate."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Points an alias to an adapter, making it when it is new."""
    body: dict[str, Any] = {"adapter_id": adapter, **_condition(expect)}
    if gate or metric is not None or max_drop is not None:
        body["gate"] = {"metric": metric, "max_drop": max_drop}
    with connect(context) as client:
        row = client.put(f"/aliases/{alias}", body)
    show_json(row) if as_json else show_fields(row, COLUMNS)


@app.command("rollback")
def roll_back(
    context: typer.Context,
    alias: Alias,
    revision: Annotated[
        int | None, typer.Option(min=1, help="Of the history; left out: where it pointed before.")
    ] = None,
    expect: Expected = None,
    as_json: AsJson = False,
) -> None:
    """Points an alias to where it pointed before."""
    body = {"revision": revision, **_condition(expect)}
    with connect(context) as client:
        row = client.post(f"/aliases/{alias}:rollback", body)
    show_json(row) if as_json else show_fields(row, COLUMNS)


@app.command("history")
def history(
    context: typer.Context, alias: Alias, limit: Limit = 20, as_json: AsJson = False
) -> None:
    """Shows where an alias pointed, newest first."""
    rows: list[dict[str, Any]] = []
    more = True
    with connect(context) as client:
        while more and len(rows) < limit:
            before = rows[-1]["revision"] if rows else None
            page = client.get(f"/aliases/{alias}", limit=min(limit - len(rows), 100), before=before)
            rows += page["history"]
            more = page["history_has_more"]
    show_json(rows) if as_json else show_table(rows, MOVES)


@app.command("delete")
def delete_alias(context: typer.Context, alias: Alias) -> None:
    """Deletes an alias; the adapter stays."""
    with connect(context) as client:
        client.delete(f"/aliases/{alias}")


def _condition(expect: str | None) -> dict[str, str | None]:
    if expect is None:
        return {}
    return {"expected_adapter_id": None if expect == "none" else expect}
