"""A service with processes of batches that can be killed, and answers that can be held back."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from openai import OpenAI
from openai.types import Batch

from core.settings import child_environment
from inference.schemas import PredictIn
from tests.processes import wait_until
from tests.service.app.conftest import Edge
from tests.service.app.twin_inference import TwinInference

ROOT = Path(__file__).parents[3]
# none outlives the tests, even when those are killed
_LEASH = (sys.executable, "-I", "-S", str(ROOT / "cli" / "leash.py"))
ENDED = {"completed", "failed", "expired", "cancelled"}
DEADLY = "deadly"
PATIENCE_SECONDS = 240.0
"""A process of batches imports the whole application: 40 seconds on a machine that is busy."""


class HeldInference(TwinInference):
    """Holds some rows back, dies on one, counts all."""

    def __init__(self) -> None:
        super().__init__()
        self.held: set[str] = set()
        self.asked: Counter[str] = Counter()
        self.seconds = 0.0
        """How long a row takes, until what is held back is answered."""
        self.shares: set[str] = set()
        self._open = threading.Event()
        self._breaks: set[str] = set()

    def open(self) -> None:
        """Answer what was held back."""
        self._open.set()

    async def _predict(self, body: PredictIn, request: Request) -> Any:
        self.shares.add(body.share)
        for row in body.rows:
            self.asked[str(row.input)] += 1
            while str(row.input) in self.held and not self._open.is_set():
                await asyncio.sleep(0.01)
            if self.seconds and not self._open.is_set():
                await asyncio.sleep(self.seconds)
            if row.input == DEADLY:
                return StreamingResponse(_broken_off(), media_type="application/json")
        return await super()._predict(body, request)


async def _broken_off() -> AsyncIterator[bytes]:
    yield b"{"
    raise RuntimeError("the process is killed")


def line(custom_id: str, url: str = "/predict", **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def asking(texts: Sequence[str], adapter: str = "intents") -> list[dict[str, Any]]:
    """A request for each text, which is its custom id too."""
    return [line(text, adapter_id=adapter, inputs=[text]) for text in texts]


def jsonl(rows: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@dataclass
class Office:
    """A running service without a process of batches; tests start those."""

    edge: Edge
    twin: HeldInference
    client: OpenAI
    other: OpenAI
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, **changed: object) -> subprocess.Popen[bytes]:
        """Start a process of batches, with some other settings."""
        log = self.edge.settings.data_dir / f"batches-{len(self.processes)}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*_LEASH, str(os.getpid()), sys.executable, "-m", "app.batches"],
                cwd=ROOT,
                env=child_environment(self.edge.settings.model_copy(update=changed)),
                stdout=output,
                stderr=output,
            )
        self.processes.append(process)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        self.twin.open()
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(30)

    def log(self) -> str:
        logs = sorted(self.edge.settings.data_dir.glob("batches-*.log"))
        return "\n".join(log.read_text() for log in logs)

    def send(self, rows: Sequence[Any] | bytes, *, name: str = "requests.jsonl") -> str:
        content = rows if isinstance(rows, bytes) else jsonl(rows)
        return self.client.files.create(file=(name, content), purpose="batch").id

    def create(self, rows: Sequence[Any] | bytes, *, endpoint: Any = "/predict") -> Batch:
        return self.client.batches.create(
            input_file_id=self.send(rows), endpoint=endpoint, completion_window="24h"
        )

    def get(self, batch_id: str) -> Batch:
        return self.client.batches.retrieve(batch_id)

    def wait(self, batch_id: str, *statuses: str, kept: int = 0) -> Batch:
        """Wait for one of some statuses (by default any end), or for so many kept answers."""
        seen: list[Batch] = []

        def is_so() -> bool:
            batch = self.get(batch_id)
            seen[:] = [batch]
            counts = batch.request_counts
            assert counts is not None
            if kept:
                return counts.completed + counts.failed >= kept
            return batch.status in (statuses or ENDED)

        try:
            wait_until(is_so, seconds=PATIENCE_SECONDS)
        except AssertionError as error:
            raise AssertionError(f"{seen}\n{self.log()}") from error
        return seen[0]

    def read(self, file_id: str | None) -> list[dict[str, Any]]:
        """Lines of an output or an error file; none of a file that is not there."""
        if file_id is None:
            return []
        content = self.client.files.content(file_id).read()
        return [json.loads(row) for row in content.splitlines()]

    def ids(self, file_id: str | None) -> list[str]:
        return [row["custom_id"] for row in self.read(file_id)]
