"""`tunery serve`: the whole service on this machine, from one command.

Decides what starts in which order and what a person is told; keeping it running is `supervisor`'s.
"""

import contextlib
import fcntl
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from cli import programs
from cli.supervisor import ProgramFailedError, Supervisor
from core.db import open_database, tenants
from core.db.migrate import upgrade
from core.errors import ServiceError, Unavailable
from core.settings import (
    Settings,
    child_environment,
    explain_unknown_variables,
    load_settings,
)
from core.storage import remove_leftovers

# The first start converts a base model, which takes a while on a slow machine.
READY_SECONDS = 300.0
KEY_FILE = "api-key"
FAILED = "failed"
# How the lines begin that others look for.
READY = "Ready:"
BASE_MODEL = "Base model"
CANNOT_SERVE = "Cannot serve the base model"


class CannotServeError(Exception):
    """The service cannot start here; the message says what to change."""


def serve(
    settings: Settings,
    *,
    say: Callable[[str], None],
    echo: Callable[[str], None] | None = None,
) -> int:
    """Runs the service until a signal asks to stop.

    Args:
        settings: Where it keeps its data and where it listens.
        say: Receives one line of news for the person watching.
        echo: Receives every line of every program; None keeps them in the logs alone.

    Returns:
        Exit code: 0 after a stop that was asked for, 1 when it could not start or go on.
    """
    for told in explain_unknown_variables():  # its programs do not see them
        say(told)
    try:
        with only_one(settings.data_dir):
            check_ports(settings)
            remove_leftovers(settings)
            return _run(settings, say=say, echo=echo)
    except (CannotServeError, ProgramFailedError, ServiceError) as error:
        say(str(error))
    except OSError as error:
        say(f"Cannot serve from {settings.data_dir}: {error}")
    return 1


def _run(
    settings: Settings, *, say: Callable[[str], None], echo: Callable[[str], None] | None
) -> int:
    with programs.broker_socket(settings.data_dir) as listen:
        full = load_settings(
            **settings.model_dump()
            | {
                "broker_url": f"redis+socket://{listen}?virtual_host=0",
                # Nobody but our own api may ask the inference process.
                "inference_token": settings.inference_token or secrets.token_urlsafe(32),
            }
        )
        logs = settings.data_dir / "logs"
        with Supervisor(
            environment=child_environment(full), log_dir=logs, say=say, echo=echo
        ) as supervisor:
            say(f"Starting; data in {settings.data_dir}, logs in {logs}")
            supervisor.start(programs.broker(settings.data_dir, listen))
            prepare_database(full, say=say, replaces_lost_key=True)
            for program in programs.after_migration(full):
                supervisor.start(program)
            told: dict[str, str] = {}
            supervisor.wait_until(
                lambda: _is_settled(settings, told, say=say),
                what="the service",
                seconds=READY_SECONDS,
            )
            if not supervisor.stopping:
                _welcome(settings, told, logs, say=say)
            supervisor.watch()
    say("Stopped.")
    return 0


def _is_settled(settings: Settings, told: dict[str, str], *, say: Callable[[str], None]) -> bool:
    """Tells whether everything is ready, or will not be: a base model that failed stays so.

    Loading takes most of a start, so how far it is is told whenever that changes.
    """
    states = _tell_bases(settings, told, say=say).values()
    address = base_url(settings)
    if programs.answers(f"{address}/readyz"):
        _tell_bases(settings, told, say=say)  # one may have become ready between the two looks
        return True
    done = bool(states) and all(state in {"ready", FAILED} for state in states)
    return done and FAILED in states and programs.answers(f"{address}/healthz")


def _tell_bases(
    settings: Settings, told: dict[str, str], *, say: Callable[[str], None]
) -> dict[str, str]:
    found = programs.base_states(settings.inference_url)
    for name, state in found.items():
        if told.get(name) != state:
            told[name] = state
            say(f"{BASE_MODEL} {name}: {state}")
    return found


def _welcome(
    settings: Settings, bases: dict[str, str], logs: Path, *, say: Callable[[str], None]
) -> None:
    for name, state in bases.items():
        if state == FAILED:
            say(f"{CANNOT_SERVE} {name}; {logs / 'inference.log'} says why")
    say(f"{READY} {base_url(settings)}/docs   (stop with Ctrl-C)")


def prepare_database(
    settings: Settings, *, say: Callable[[str], None], replaces_lost_key: bool
) -> None:
    """Migrates the database and makes the first key, which is shown this once and kept in a file.

    A file that is there while the database has no key is of another database, and is replaced.

    Args:
        settings: Which database, and where the file goes.
        say: Is told the key.
        replaces_lost_key: Whether another key is made where there are keys and the file is gone:
            right for the one service of a data directory; a deployment that migrates from a fresh
            container each time would leave a key behind each time.
    """
    upgrade(settings.database_url)
    path = settings.data_dir / KEY_FILE
    database = open_database(settings)
    try:
        with database.write() as session:
            secret = tenants.ensure_first_key(session)
            if secret is None and replaces_lost_key and not path.exists():
                tenant = tenants.ensure_tenant(session)
                secret = tenants.create_key(session, tenant.id, name="first").secret
            if secret is not None:
                # Inside the transaction: a key that was not written down is not made either.
                _keep_key(path, secret)
    finally:
        database.dispose()
    if secret is not None:
        say(f"API key (kept in {path}): {secret}")


def _keep_key(path: Path, secret: str) -> None:
    """Writes a key that only this user may read.

    Raises:
        Unavailable: It cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"{secret}\n")
    except OSError as error:
        reason = f"The API key cannot be kept in {path}: {error.strerror}; no key was made"
        raise Unavailable(reason, code="storage_unavailable") from error


def base_url(settings: Settings) -> str:
    """Returns the address at which this machine reaches the api.

    Args:
        settings: Where the api listens; a wildcard address is reached by the loopback one.
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104
    return f"http://{host}:{settings.port}"


@contextlib.contextmanager
def only_one(data_dir: Path) -> Iterator[None]:
    """Keeps a second service away from a data directory while this one lives.

    Args:
        data_dir: The directory; made when missing.

    Yields:
        Nothing; the lock is held until the end, however this process ends.

    Raises:
        CannotServeError: Another service has it, or it cannot be written.
    """
    try:
        # Others on this machine may not read what users send.
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # "a": the number inside is for the message of the next one who comes.
        handle = (data_dir / "serve.lock").open("a+", encoding="utf-8")
    except OSError as error:
        reason = f"Cannot write to the data directory {data_dir}: {error.strerror}"
        raise CannotServeError(reason) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            reason = (
                f"Another `tunery serve` (process {handle.read().strip()}) uses {data_dir}; "
                "stop it, or give this one its own --data-dir and ports"
            )
            raise CannotServeError(reason) from error
        handle.seek(0)
        handle.truncate()
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def check_ports(settings: Settings) -> None:
    """Tells of a taken port before anything starts.

    Args:
        settings: Where api and inference will listen.

    Raises:
        CannotServeError: Something listens there already, or may not.
    """
    wanted = [
        ("--port", settings.host, settings.port),
        ("--inference-port", settings.inference_host, settings.inference_port),
    ]
    for option, host, port in wanted:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            # As the servers do: a connection that still closes is no reason to refuse.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                why = f"Cannot listen on {host}:{port}: {error.strerror}"
                raise CannotServeError(f"{why}; choose another with {option}") from error
