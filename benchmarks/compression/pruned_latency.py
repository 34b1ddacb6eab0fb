"""How much faster a base is without some of its parts: ``python -m benchmarks pruning-latency``.

Forwards of ``minilm`` in fp32 on random tokens, every variant in turn in each round and the order
reversed in the next. Seconds are those of the processor, so that other work on the machine changes
them little; with one thread and an idle machine they are those of the clock. Which parts go does
not matter for speed, so calibration is a few random rows. Zeros set by Wanda are computed like any
number and bring nothing, which is shown too. Writes ``benchmarks/results/pruning-latency.json``.
"""

import argparse
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.compression.recovery import PRUNINGS
from benchmarks.quality.grid import BASES
from benchmarks.record import write_result
from peft_engine.bases.base import Base, load_base
from peft_engine.bases.forward import hidden_states
from peft_engine.compression.pruning import Calibration, prune
from peft_engine.configs.pruning import PruningConfig
from peft_engine.parts.batching import Batch, Example, TokenRow, collate
from peft_engine.runtime import pin_threads

BASE = "minilm"
SHAPES = ((1, 32), (32, 32))
"""Rows and tokens of a forward."""
VARIANTS = ("untouched", "ffn-0.25", "ffn-0.5", "heads-0.25", "layers-0.17", "wanda-0.5")


@dataclass
class Variant:
    """A base and its times.

    Attributes:
        base: The base.
        bytes: Of its weights.
        seconds: One forward each, by shape.
    """

    base: Base
    bytes: int
    seconds: dict[tuple[int, int], list[float]] = field(default_factory=dict)


def random_rows(rows: int, tokens: int, *, seed: int = 0) -> list[TokenRow]:
    """Rows of random ids.

    Args:
        rows: How many.
        tokens: Tokens of each.
        seed: Of the draw.

    Returns:
        The rows.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2000, 20000, (rows, tokens), generator=generator)
    return [TokenRow(row) for row in ids.tolist()]


def load_variant(name: str, models_dir: Path) -> Variant:
    """Load a base and prune it.

    Args:
        name: A pruning of the table, or ``untouched``.
        models_dir: Folder of the base models.

    Returns:
        The variant.
    """
    base = load_base(BASES[BASE], name=BASE, models_dir=models_dir, precision="fp32")
    if name in PRUNINGS:
        config = PruningConfig.model_validate(PRUNINGS[name])
        prune(base, config, Calibration(random_rows(4, 16)))
    return Variant(base, sum(weight.nbytes for weight in base.model.parameters()))


def time_forward(base: Base, batch: Batch, repeats: int) -> float:
    """Seconds of one forward, the mean of a few.

    Args:
        base: The base.
        batch: What it reads.
        repeats: How many forwards.

    Returns:
        Seconds.
    """
    with torch.no_grad():
        started = time.process_time()
        for _ in range(repeats):
            hidden_states(base, batch)
        return (time.process_time() - started) / repeats


def main() -> None:
    """Time the variants in alternating order and print ratios of medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    pin_threads(asked.threads)
    variants = {name: load_variant(name, asked.models_dir) for name in VARIANTS}
    for shape in SHAPES:
        examples = [Example((row,)) for row in random_rows(*shape, seed=1)]
        batch = collate(examples, pad_id=0, device=torch.device("cpu"))
        for number in range(asked.rounds + 1):
            for name in VARIANTS if number % 2 else reversed(VARIANTS):
                own = variants[name]
                taken = time_forward(own.base, batch, repeats=8 if shape[0] == 1 else 1)
                if number:  # the first round warms up
                    own.seconds.setdefault(shape, []).append(taken)
    runs = [
        {
            "variant": name,
            "bytes": own.bytes,
            "seconds": {str(k): v for k, v in own.seconds.items()},
        }
        for name, own in variants.items()
    ]
    write_result("pruning-latency", summary=summarize(variants, asked.threads), runs=runs)


def summarize(variants: dict[str, Variant], threads: int) -> dict[str, Any]:
    """Medians and how many times faster than the untouched base.

    Args:
        variants: What was timed.
        threads: Threads of a product.

    Returns:
        JSON values.
    """
    first = variants["untouched"]
    found: dict[str, Any] = {"threads": threads, "precision": "fp32", "seconds": "processor"}
    for name, own in variants.items():
        speeds = {
            f"{rows}x{tokens}": round(
                statistics.median(first.seconds[rows, tokens])
                / statistics.median(own.seconds[rows, tokens]),
                3,
            )
            for rows, tokens in SHAPES
        }
        medians = {f"{r}x{t}": statistics.median(own.seconds[r, t]) for r, t in SHAPES}
        found[name] = {"bytes": own.bytes, "median_seconds": medians, "times_faster": speeds}
    return found


if __name__ == "__main__":
    main()
