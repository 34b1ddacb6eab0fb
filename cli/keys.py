"""`tunery keys`: API keys of the own tenant."""

from typing import Annotated

import typer

from cli.connection import connect
from cli.output import AsJson, Limit, show_fields, show_json
from cli.resources import show_deleted, show_list

app = typer.Typer(help="API keys.", no_args_is_help=True)

FIELDS = ("key", "id", "name", "prefix", "scopes", "expires_at", "created_at")
COLUMNS = ("id", "name", "prefix", "scopes", "last_used_at", "expires_at", "revoked_at")


@app.command("create")
def create_key(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="What it is for.")] = "key",
    scope: Annotated[
        list[str] | None,
        typer.Option(help="read, write, predict or admin; may be repeated. Else the first three."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Creates a key; it is shown this once. Needs a key with the scope admin."""
    body: dict[str, object] = {"name": name}
    if scope:
        body["scopes"] = scope
    with connect(context) as client:
        key = client.post("/keys", body)
    show_json(key) if as_json else show_fields(key, FIELDS)


@app.command("list")
def list_keys(context: typer.Context, limit: Limit = 20, as_json: AsJson = False) -> None:
    """Lists keys without their secret part, revoked ones too. Needs the scope admin."""
    show_list(context, "/keys", COLUMNS, limit=limit, as_json=as_json)


@app.command("revoke")
def revoke_key(context: typer.Context, key_id: str, as_json: AsJson = False) -> None:
    """Makes a key invalid for good. Needs the scope admin."""
    show_deleted(context, f"/keys/{key_id}", as_json=as_json)
