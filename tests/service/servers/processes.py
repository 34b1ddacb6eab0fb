"""Starting real servers so that none outlives the tests, even when those are killed with
SIGKILL."""

import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
# loaded before any fork: importing it in a child that has changed its user fails
_LIBC = ctypes.CDLL(None)
_START_SECONDS = 20.0


def free_port() -> int:
    """Find a port that nobody listens on; somebody may take it before we do."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def unprivileged() -> dict[str, Any]:
    """Options of ``subprocess`` for a server that refuses to run as root."""
    if os.getuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that the unprivileged user owns, removed even when this process is killed."""
    folder = Path(tempfile.mkdtemp(prefix="tunery-test-"))
    options = unprivileged()
    if options:
        os.chown(folder, options["user"], options["group"])
    folder.chmod(0o755)
    # the guardian reads until our end of the pipe closes, however we end
    guardian = subprocess.Popen(
        ["/bin/sh", "-c", 'cat >/dev/null; rm -rf "$1"; sleep 1; rm -rf "$1"', "guardian", folder],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        guardian.kill()
        assert guardian.stdin is not None
        guardian.stdin.close()
        guardian.wait()


@contextmanager
def running(
    command: Sequence[str | Path],
    *,
    is_ready: Callable[[], bool],
    stop_signal: signal.Signals,
    folder: Path,
    **options: Any,
) -> Iterator[subprocess.Popen[bytes]]:
    """A server from the moment it answers to the end of the block."""
    log = folder / "server.log"

    def die_with_parent() -> None:
        # runs in the child after its change of user, which would have cleared it
        if sys.platform == "linux":
            _LIBC.prctl(_PR_SET_PDEATHSIG, int(stop_signal))

    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
            preexec_fn=die_with_parent,
            **options,
        )
    try:
        wait_until(lambda: process.poll() is not None or is_ready(), seconds=_START_SECONDS)
        if process.poll() is not None:
            pytest_message = f"{command[0]} ended at once:\n{log.read_text(errors='replace')}"
            raise RuntimeError(pytest_message)
        yield process
    finally:
        process.send_signal(stop_signal)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(condition: Callable[[], bool], *, seconds: float) -> None:
    """Wait for a condition that only asking can tell; fails when it does not come true in time."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        pause.wait(0.02)
    message = f"not ready within {seconds} s"
    raise TimeoutError(message)


def answers(port: int, question: bytes = b"", reply: bytes = b"") -> bool:
    """Whether something on a loopback port answers a question as expected."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            if not question:
                return True
            connection.sendall(question)
            return connection.recv(len(reply)) == reply
    except OSError:
        return False
