"""Quantization without any tuning: ``python -m benchmarks quantization-perplexity``.

``smollm2`` on ``sgd_dialogue``: perplexity of the assistant's turns of evenly spaced test rows, for
the untouched base in fp32 and for each quantization of it. Writes
``benchmarks/results/quantization-perplexity.json``.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.quality.grid import BASES
from benchmarks.quality.rows import read_splits, take_rows
from benchmarks.record import write_result
from peft_engine.bases.base import describe_base
from peft_engine.compression.derive import load_derived
from peft_engine.configs import BaseConfig
from peft_engine.configs.base import QUANTIZATIONS
from peft_engine.router import Router
from peft_engine.runtime import pin_threads
from peft_engine.tasks.table import TASKS
from peft_engine.training.forwards import EvaluationForward

SET, TASK, BASE = "sgd_dialogue", "text-generation", "smollm2"
MAX_LENGTH_TOKENS = 512
"""Holds nearly every dialogue of the set."""
BATCH_ROWS = 4


def main() -> None:
    """Measure each scheme on a base loaded anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--schemes", nargs="+", default=["none", *QUANTIZATIONS])
    parser.add_argument("--test-rows", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    pin_threads(asked.threads)
    splits = read_splits(asked.data / SET, task=TASK)
    records = take_rows(splits["test"], asked.test_rows, spread=True)
    info = describe_base(BASES[BASE], name=BASE, models_dir=asked.models_dir)
    runs: list[dict[str, Any]] = []
    fp32_bytes = 0
    for scheme in asked.schemes:
        base = load_derived(info, BaseConfig(quantization=scheme), precision="fp32")
        task = TASKS[TASK]
        examples = task.encode(base, records, labels=None, max_length=MAX_LENGTH_TOKENS)
        forward = EvaluationForward(base, Router(base.trunk), None, lambda: None)
        found = task.evaluate(
            forward, None, examples, records, batch_size=BATCH_ROWS, generate_rows=0
        )
        fp32_bytes = 4 * base.parameters
        runs.append({"scheme": scheme, "bytes": base.bytes, **found.metrics})
        print(runs[-1], flush=True)
    summary = {
        run["scheme"]: {
            "perplexity": round(run["perplexity"], 3),
            "bytes_of_fp32": round(run["bytes"] / fp32_bytes, 3),
        }
        for run in runs
    }
    write_result(
        "quantization-perplexity", summary={**summary, "test_rows": len(records)}, runs=runs
    )


if __name__ == "__main__":
    main()
