"""`tunery webhooks`: addresses that are told when a job has ended."""

from typing import Annotated, Any

import typer

from cli.connection import connect
from cli.output import AsJson, Limit, show_fields, show_json
from cli.resources import show_deleted, show_list

app = typer.Typer(help="Be told when jobs have ended.", no_args_is_help=True)

ROOT = "/v1/webhook_endpoints"
FIELDS = ("signing_secret", "id", "name", "url", "event_types", "x_enabled", "x_disabled_reason")
COLUMNS = ("id", "name", "url", "event_types", "x_enabled", "x_delivered", "x_failed")
DELIVERIES = ("id", "type", "of", "status", "attempts", "status_code", "error")

Endpoint = Annotated[str, typer.Argument(help="Id of the endpoint.")]


@app.command("create")
def create_endpoint(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What you call it.")],
    url: Annotated[str, typer.Argument(help="Where to send.")],
    event: Annotated[
        list[str] | None,
        typer.Option(help="Type of event, such as batch.failed; may be repeated. Else all."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Creates an endpoint; its signing secret is shown this once."""
    with connect(context) as client:
        wanted = event or client.get("/v1/webhook_event_types")["data"]
        row = client.post(ROOT, {"name": name, "url": url, "event_types": wanted})
    show_json(row) if as_json else show_fields(row, FIELDS)


@app.command("list")
def list_endpoints(context: typer.Context, limit: Limit = 20, as_json: AsJson = False) -> None:
    """Lists endpoints."""
    show_list(context, ROOT, COLUMNS, limit=limit, as_json=as_json)


@app.command("enable")
def enable_endpoint(context: typer.Context, endpoint: Endpoint, as_json: AsJson = False) -> None:
    """Sends again to an endpoint that was disabled, as an answer 410 does."""
    with connect(context) as client:
        row = client.post(f"{ROOT}/{endpoint}", {"x_enabled": True})
    show_json(row) if as_json else show_fields(row, FIELDS)


@app.command("delete")
def delete_endpoint(context: typer.Context, endpoint: Endpoint, as_json: AsJson = False) -> None:
    """Deletes an endpoint, and gives up what waits for it."""
    show_deleted(context, f"{ROOT}/{endpoint}", as_json=as_json)


@app.command("test")
def send_test(
    context: typer.Context,
    endpoint: Endpoint,
    event: Annotated[str | None, typer.Option(help="Type of event.")] = None,
    as_json: AsJson = False,
) -> None:
    """Sends a sample at once, and shows the status of the answer."""
    body = {} if event is None else {"event_type": event}
    with connect(context) as client:
        result = client.post(f"{ROOT}/{endpoint}/test", body)
    show_json(result) if as_json else show_fields(result, ("event_type", "status_code"))


@app.command("deliveries")
def list_deliveries(
    context: typer.Context, endpoint: Endpoint, limit: Limit = 20, as_json: AsJson = False
) -> None:
    """Lists what was sent to an endpoint in the last 30 days, or waits to be."""
    show_list(
        context,
        f"{ROOT}/{endpoint}/deliveries",
        DELIVERIES,
        limit=limit,
        as_json=as_json,
        as_row=_flat,
    )


@app.command("resend")
def resend_delivery(
    context: typer.Context,
    endpoint: Endpoint,
    delivery: Annotated[str, typer.Argument(help="Id of the delivery.")],
    as_json: AsJson = False,
) -> None:
    """Sends a delivery again, whatever became of it."""
    with connect(context) as client:
        row = client.post(f"{ROOT}/{endpoint}/deliveries/{delivery}/resend")
    show_json(row) if as_json else show_fields(_flat(row), DELIVERIES)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    event = row["event"]
    return {**row, "type": event["type"], "of": event["data"]["id"]}
