"""`tunery`: the command line, put together."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from cli import (
    adapters,
    aliases,
    batches,
    datasets,
    jobs,
    keys,
    orphans,
    predict,
    service,
    sweeps,
    tenants,
    webhooks,
)
from cli.client import RequestFailedError
from cli.connection import Connection
from cli.output import as_text, stderr
from core.errors import ServiceError

_SHOWN_CHARS = 100

app = typer.Typer(
    help="Fine-tuning as a service on shared, frozen base models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("serve")(service.serve)
app.command("demo")(service.demo)
app.command("setup")(service.setup)
app.command("migrate")(service.migrate)
app.command("orphans")(orphans.orphans)
app.command("predict")(predict.predict)
app.add_typer(datasets.app, name="datasets")
app.add_typer(jobs.app, name="jobs")
app.add_typer(batches.app, name="batches")
app.add_typer(sweeps.app, name="sweeps")
app.add_typer(adapters.app, name="adapters")
app.add_typer(aliases.app, name="aliases")
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(keys.app, name="keys")
app.add_typer(tenants.app, name="tenants")


@app.callback()
def connection(
    context: typer.Context,
    url: Annotated[
        str, typer.Option(envvar="TUNERY_URL", help="Address of the service.")
    ] = "http://127.0.0.1:8000",
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="TUNERY_API_KEY",
            show_envvar=True,
            help="Key to send. Without one: the key in the data directory of this machine.",
        ),
    ] = None,
    data_dir: Annotated[
        Path, typer.Option(envvar="TUNERY_DATA_DIR", help="Data directory of this machine.")
    ] = Path("data"),
) -> None:
    """Fine-tuning as a service on shared, frozen base models."""
    context.obj = Connection(url=url, api_key=api_key, data_dir=data_dir)


def run() -> None:
    """Runs the command line; what a person can mend is one line on stderr and exit code 1."""
    try:
        app()
    except RequestFailedError as error:
        _tell(error.code, str(error))
        for problem in error.body.get("details") or []:
            stderr.print(f"  {as_text(problem)}")
        sys.exit(1)
    except ServiceError as error:
        # Of the commands that work on the database itself.
        _tell(error.code, str(error))
        sys.exit(1)
    except UnicodeEncodeError as error:
        # An argument of other bytes than UTF-8 (a file may be called so, nothing else may), or a
        # terminal that cannot show an answer.
        _tell("bad_text", f"{error.object[:_SHOWN_CHARS]!a} is no {error.encoding}")
        sys.exit(1)
    except OSError as error:
        # Of the commands that work on this machine: a data directory that is a file, a full disk.
        where = f" ({error.filename})" if error.filename else ""
        _tell("files", f"{error.strerror or error}{where}", highlight=False)
        sys.exit(1)
    except ValidationError as error:
        # Settings of the environment; the values may be secrets and are not shown.
        for fault in error.errors(include_input=False, include_url=False):
            if fault["type"] == "default_factory_not_called":  # follows from another of these
                continue
            where = ".".join(str(part) for part in fault["loc"])
            stderr.print(f"[bold red]Setting[/bold red] {where}: {as_text(fault['msg'])}")
        sys.exit(2)


def _tell(code: str, why: str, *, highlight: bool | None = None) -> None:
    line = f"[bold red]Error[/bold red] {as_text(code)}: {as_text(why)}"
    stderr.print(line, highlight=highlight)
