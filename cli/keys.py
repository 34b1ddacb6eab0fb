"""`tunery keys`: further API keys."""

from typing import Annotated

import typer

from cli.connection import connect
from cli.output import AsJson, show_fields, show_json

app = typer.Typer(help="API keys.", no_args_is_help=True)

FIELDS = ("key", "id", "name", "prefix", "scopes", "expires_at", "created_at")


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
