"""The answering half of the service as real processes: an api and inference replicas, real HTTP.

No broker and no worker: nothing is trained here, adapters are published as a worker would publish
them. Command lines are those of ``tunery serve``.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from cli.programs import free_ports
from core.db import adapters, open_database, tenants
from core.db.migrate import upgrade
from core.db.models import Adapter
from core.settings import load_settings
from core.storage import delta_key, open_store
from peft_engine.delta import Delta, save_delta

START_SECONDS = 240.0
API = ("-m", "uvicorn", "--factory", "app.main:create_app", "--no-access-log")
_RSS = re.compile(r"^VmRSS:\s+(\d+) kB", re.MULTILINE)


def pause(seconds: float) -> None:
    """Wait without holding anything."""
    threading.Event().wait(seconds)


def wait_until(holds: Callable[[], bool], *, seconds: float = START_SECONDS) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: It never came true.
    """
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            raise TimeoutError(f"still not so after {seconds:g} s")
        pause(0.05)


def rss_bytes(pid: int) -> int:
    """Memory of a process that is in RAM now; 0 when it has ended."""
    try:
        found = _RSS.search(Path(f"/proc/{pid}/status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(found[1]) * 1024 if found else 0


def rss_bytes_of_self() -> int:
    """The same of this process."""
    return rss_bytes(os.getpid())


class Stack:
    """A running api with its inference replicas.

    Args:
        folder: Their data directory.
        bases: Base models, name to reference.
        models_dir: Folder of converted base models.
        replicas: How many inference processes.
        api: Arguments of the python that is the api.
        settings: Further settings of all processes, such as ``bank_bytes``.

    Attributes:
        http: A client of the api with a key of the default tenant.
        urls: Addresses of the inference processes.
        processes: The processes by name: ``api``, ``inference 0`` and so on.
    """

    def __init__(
        self,
        folder: Path,
        bases: Mapping[str, str],
        models_dir: Path,
        *,
        replicas: int = 1,
        api: Sequence[str] = API,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self._folder = folder
        port, *ports = free_ports(1 + replicas)
        self.urls = [f"http://127.0.0.1:{number}" for number in ports]
        own = {
            "data_dir": folder,
            "models_dir": models_dir,
            "base_models": dict(bases),
            "inference_url": self.urls[0],
        } | dict(settings or {})
        self.settings = load_settings(**own)
        upgrade(self.settings.database_url)
        self.database = open_database(self.settings)
        self.store = open_store(self.settings)
        with self.database.write() as session:
            self.tenant_id = tenants.ensure_tenant(session, name="default").id
            self.key = tenants.create_key(session, self.tenant_id, name="benchmark").secret
        self._environment = _environment(own)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for number in range(replicas):
            self.start_replica(number)
        argv = [sys.executable, *api, "--host", "127.0.0.1", "--port", str(port)]
        self._start("api", argv, {})
        self.url = f"http://127.0.0.1:{port}"
        self.http = self.client()
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until every process can answer."""
        for number, url in enumerate(self.urls):
            self._wait_for(f"{url}/readyz", f"inference {number}")
        self._wait_for(f"{self.url}/healthz", "api")

    def client(self) -> httpx.Client:
        """Another client of the api."""
        headers = {"authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120, trust_env=False)

    def publish(self, name: str, delta: Delta) -> Adapter:
        """Publish a delta as a worker would.

        Args:
            name: Name of the adapter.
            delta: Its weights.

        Returns:
            The adapter's row.
        """
        key = delta_key(delta.digest)
        self.store.put_bytes(key, save_delta(delta))
        manifest = delta.manifest
        with self.database.write() as session:
            return adapters.publish(
                session,
                tenant_id=self.tenant_id,
                name=name,
                base_model=manifest.base_model,
                base_fingerprint=manifest.base_fingerprint,
                task=manifest.task,
                methods=[method.model_dump(mode="json") for method in manifest.methods],
                parameters=1,
                bytes=delta.bytes,
                digest=delta.digest,
                key=key,
                labels=list(manifest.labels or ()),
            )

    def start_replica(self, number: int) -> None:
        """Start an inference process.

        Args:
            number: Which one, from 0.
        """
        url = self.urls[number]
        own = {"inference_port": url.rpartition(":")[2], "inference_url": url}
        self._start(f"inference {number}", [sys.executable, "-m", "inference"], own)

    def start_batches(self) -> None:
        """Start a process of batches."""
        self._start("batches", [sys.executable, "-m", "app.batches"], {})

    def kill(self, name: str) -> None:
        """End a process without warning."""
        self.processes[name].kill()
        self.processes[name].wait(60)

    def rss(self) -> dict[str, int]:
        """Bytes in RAM of each process."""
        return {name: rss_bytes(process.pid) for name, process in self.processes.items()}

    def metrics(self, number: int = 0) -> dict[str, float]:
        """The counts of an inference process that stand alone in their line."""
        text = httpx.get(f"{self.urls[number]}/metrics", trust_env=False).text
        pairs = re.findall(r"^tunery_inference_(\w+) (\S+)$", text, re.MULTILINE)
        return {name: float(value) for name, value in pairs}

    def stop(self) -> None:
        """End everything."""
        self.http.close()
        self.database.dispose()
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait(60)

    def _start(self, name: str, argv: Sequence[str], own: Mapping[str, object]) -> None:
        environment = self._environment | _environment(own)
        output = self._folder / f"{name.replace(' ', '-')}.out"
        with output.open("ab") as stream:
            self.processes[name] = subprocess.Popen(
                argv, env=environment, stdout=stream, stderr=stream
            )

    def _wait_for(self, url: str, name: str) -> None:
        def answers() -> bool:
            if self.processes[name].poll() is not None:
                output = self._folder / f"{name.replace(' ', '-')}.out"
                raise SystemExit(f"{name} ended:\n{output.read_text()}")
            try:
                return httpx.get(url, trust_env=False).status_code == 200
            except httpx.TransportError:
                return False

        wait_until(answers)


def _environment(own: Mapping[str, object]) -> dict[str, str]:
    """This process's environment with settings of the stack's own."""
    inherited = os.environ  # noqa: TID251  (a child needs PATH and the like)
    kept = {name: value for name, value in inherited.items() if not name.startswith("TUNERY_")}
    return kept | {f"TUNERY_{name.upper()}": _as_text(value) for name, value in own.items()}


def _as_text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
