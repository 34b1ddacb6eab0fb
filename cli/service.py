"""`tunery serve`, `tunery demo` and `tunery setup`: the commands that run here, not over HTTP."""

import os
import threading
from pathlib import Path
from typing import Annotated

import typer

from cli import setup as base_models
from cli.connection import Connection
from cli.demo import run_demo
from cli.output import as_text, leave, stderr, stdout
from cli.serve import prepare_database
from cli.serve import serve as run_service
from core.settings import load_settings


def _or_of_all(context: typer.Context, data_dir: Path | None) -> Path | None:
    """What stands before the command counts for the command too, and has read the environment."""
    connection = context.find_object(Connection)
    return connection.data_dir if data_dir is None and connection is not None else data_dir


DataDir = Annotated[
    Path | None,
    typer.Option(
        callback=_or_of_all,
        help="Where everything is kept; else what stands before the command, or TUNERY_DATA_DIR.",
    ),
]
ModelsDir = Annotated[
    Path | None,
    typer.Option(envvar="TUNERY_MODELS_DIR", help="Base models; else `models` in the data."),
]
Host = Annotated[str | None, typer.Option(envvar="TUNERY_HOST", help="Address to listen on.")]
Port = Annotated[int | None, typer.Option(envvar="TUNERY_PORT", help="Port of the api; else 8000.")]
InferencePort = Annotated[
    int | None,
    typer.Option(envvar="TUNERY_INFERENCE_PORT", help="Port of inference; else 8010."),
]

# Programs speak from several threads; their lines must not mix.
_line = threading.Lock()


def keep_to_this_user() -> None:
    """Closes to others what this process and its children write from now on.

    The data directory may be open: `make models` makes it before anything of ours runs. In it stand
    what users sent, and in a log of the demo the first key.
    """
    os.umask(0o077)


def _say(text: str) -> None:
    with _line:
        stdout.print(f"[bold]tunery[/bold] | {as_text(text)}", highlight=False)
        stdout.file.flush()


def _echo(text: str) -> None:
    with _line:
        stderr.print(text, markup=False, highlight=False)


def serve(
    data_dir: DataDir = None,
    models_dir: ModelsDir = None,
    host: Host = None,
    port: Port = None,
    inference_port: InferencePort = None,
    verbose: Annotated[bool, typer.Option(help="Show the lines of every program.")] = False,
) -> None:
    """Runs the whole service on this machine until Ctrl-C."""
    keep_to_this_user()
    given = {
        "data_dir": data_dir,
        "models_dir": models_dir,
        "host": host,
        "port": port,
        "inference_port": inference_port,
    }
    settings = load_settings(**{name: value for name, value in given.items() if value is not None})
    leave(run_service(settings, say=_say, echo=_echo if verbose else None))


def migrate(data_dir: DataDir = None) -> None:
    """Brings the database to the newest version; on a new one makes the first key."""
    keep_to_this_user()
    settings = load_settings(**({"data_dir": data_dir} if data_dir else {}))
    prepare_database(settings, say=_say, replaces_lost_key=False)
    _say("The database is at the newest version.")


def setup(data_dir: DataDir = None, models_dir: ModelsDir = None) -> None:
    """Fetches the base models and prepares them, so that the first start is fast."""
    given = {"data_dir": data_dir, "models_dir": models_dir}
    settings = load_settings(**{name: value for name, value in given.items() if value is not None})
    try:
        base_models.fetch_models(settings.models_dir, say=_say)
        base_models.prepare_models(settings, say=_say)
    except KeyboardInterrupt:
        _say("Interrupted; the same command goes on with what is not done yet.")
        leave(130)
    except base_models.SetupFailedError as error:
        _say(str(error))
        leave(1)


def demo(
    data_dir: Annotated[Path, typer.Option(help="Where the demo keeps its data.")] = Path(
        "data/demo"
    ),
    models_dir: Annotated[
        Path, typer.Option(envvar="TUNERY_MODELS_DIR", help="Base models.")
    ] = Path("data/models"),
    quick: Annotated[
        bool, typer.Option(help="A few steps on few texts: whether it works here, no more.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the jobs.")] = 0,
) -> None:
    """Tunes two adapters on real data and shows what changed."""
    keep_to_this_user()
    leave(run_demo(data_dir=data_dir, models_dir=models_dir, quick=quick, seed=seed))
