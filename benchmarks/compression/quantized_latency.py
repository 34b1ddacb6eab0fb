"""Forwards of quantized bases against fp32: ``python -m benchmarks quantization-latency``.

``minilm`` on random tokens, no padding, every scheme in turn in each round and the order reversed
in the next; ratios are medians of the ratios within a round: a busy machine slows both sides alike.
With one thread seconds are those of the processor, which other work changes least, with more those
of the clock. Writes ``benchmarks/results/quantization-latency.json``.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.quality.grid import BASES
from benchmarks.record import write_result
from peft_engine.bases.base import Base, describe_base
from peft_engine.compression.derive import load_derived
from peft_engine.compression.quantization.integers import Kernel, Product
from peft_engine.compression.quantization.linears import Int8Linear
from peft_engine.configs import BaseConfig
from peft_engine.configs.base import QUANTIZATIONS
from peft_engine.runtime import pin_threads

SHAPES = ((1, 32), (32, 32), (32, 128))
"""Rows and tokens of a forward."""


def forward(base: Base, ids: torch.Tensor, clock: Callable[[], float]) -> float:
    """Seconds of one forward.

    Args:
        base: The base.
        ids: (B, T) token ids.
        clock: What is counted.

    Returns:
        Seconds.
    """
    began = clock()
    with torch.inference_mode():
        base.trunk(input_ids=ids, attention_mask=torch.ones_like(ids))
    return clock() - began


def by_kernel(base: Base, kernel: Kernel) -> Base:
    """The same integers, multiplied by another kernel.

    Args:
        base: An int8 base of our own.
        kernel: The kernel.

    Returns:
        The base, changed in place.
    """
    for module in base.model.modules():
        if isinstance(module, Int8Linear):
            own = module.product
            module.product = Product.of(own.unpacked(), own.scales, bits=own.bits, kernel=kernel)
    return base


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--base", default="minilm", choices=list(BASES))
    parser.add_argument("--schemes", nargs="+", default=list(QUANTIZATIONS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--most-tokens", type=int, default=4096, help="of a forward")
    asked = parser.parse_args()
    pin_threads(asked.threads)
    clock = time.process_time if asked.threads == 1 else time.perf_counter
    shapes = [shape for shape in SHAPES if shape[0] * shape[1] <= asked.most_tokens]
    info = describe_base(BASES[asked.base], name=asked.base, models_dir=asked.models_dir)
    bases: dict[str, Base] = {
        scheme: load_derived(info, BaseConfig(quantization=scheme), precision="fp32")
        for scheme in ("none", *asked.schemes)
    }
    if "int8" in bases:
        again = load_derived(info, BaseConfig(quantization="int8"), precision="fp32")
        bases["int8 by FBGEMM"] = by_kernel(again, "fbgemm")
    runs = []
    for rows, tokens in shapes:
        ids = torch.randint(1000, 20000, (rows, tokens))
        seconds: dict[str, list[float]] = {scheme: [] for scheme in bases}
        for number in range(asked.rounds + 1):
            names = list(bases) if number % 2 else list(reversed(bases))
            for scheme in names:
                took = forward(bases[scheme], ids, clock)
                if number:
                    seconds[scheme].append(took)
        for scheme, own in seconds.items():
            ratios = [fp32 / took for fp32, took in zip(seconds["none"], own, strict=True)]
            runs.append(
                {
                    "scheme": scheme,
                    "rows": rows,
                    "tokens": tokens,
                    "milliseconds": round(1000 * statistics.median(own), 2),
                    "least_milliseconds": round(1000 * min(own), 2),
                    "times_faster": round(statistics.median(ratios), 3),
                    "bytes": bases[scheme].bytes,
                }
            )
            print(runs[-1], flush=True)
    summary = {
        f"{own['scheme']} {own['rows']} x {own['tokens']}": own["times_faster"] for own in runs
    }
    name = (
        "quantization-latency" if asked.base == "minilm" else f"quantization-latency-{asked.base}"
    )
    settings = {"base": asked.base, "threads": asked.threads, "against": "fp32"}
    settings["seconds"] = "processor" if asked.threads == 1 else "clock"
    write_result(name, summary={"times_faster": summary, **settings}, runs=runs)


if __name__ == "__main__":
    main()
