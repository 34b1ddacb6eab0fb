"""Pruned, then recovered: ``python -m benchmarks pruning-recovery --data DIR``.

A LoRA job with default settings on a pruned ``minilm``, evaluated as the quality benchmark
evaluates the same job on the untouched base, whose lines it is compared with. Each finished run is
a line of ``benchmarks/results/pruning-recovery.jsonl``; what stands there is not run again.
"""

import argparse
import itertools
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.quality.grid import BASES, SETS
from benchmarks.quality.jobs import QualityJob
from benchmarks.quality.journal import Journal
from benchmarks.quality.rows import read_splits
from benchmarks.record import RESULTS, describe_run
from peft_engine.bases.base import load_base
from peft_engine.compression.pruning import Calibration, prune
from peft_engine.configs.pruning import PruningConfig
from peft_engine.runtime import pin_threads
from peft_engine.tasks.table import TASKS
from peft_engine.training import NoCheckpoints, train
from peft_engine.training.resolve import resolve_max_length

JOURNAL = RESULTS / "pruning-recovery.jsonl"

PRUNINGS: dict[str, dict[str, Any]] = {
    "ffn-0.25": {"method": "structured", "pattern": "ffn", "sparsity": 0.25},
    "ffn-0.5": {"method": "structured", "pattern": "ffn", "sparsity": 0.5},
    "heads-0.25": {"method": "structured", "pattern": "heads", "sparsity": 0.25},
    "layers-0.17": {"method": "structured", "pattern": "layers", "sparsity": 0.17},
    "wanda-0.5": {"method": "wanda", "sparsity": 0.5},
    "magnitude-0.5": {"method": "magnitude", "sparsity": 0.5},
    "wanda-2:4": {"method": "wanda", "pattern": "2:4"},
}
"""Six layers: 0.17 takes one."""


def run(job: QualityJob, name: str, data: Path, models_dir: Path) -> dict[str, Any]:
    """Prune a base, train on it, and evaluate.

    Args:
        job: A job of the quality benchmark.
        name: A pruning of the table.
        data: Folder of the data sets.
        models_dir: Folder of the base models.

    Returns:
        Its line for the journal.
    """
    own, config = SETS[job.set], PruningConfig.model_validate(PRUNINGS[name])
    splits, task = read_splits(data / job.set, task=own.task), TASKS[own.task]
    base = load_base(BASES[own.base], name=own.base, models_dir=models_dir, precision="fp32")
    before = base.parameters
    started = time.process_time()
    examples = task.encode(
        base,
        splits["train"],
        labels=task.find_labels(splits["train"]),
        max_length=resolve_max_length(job.spec, base, task),
    )
    report = prune(base, config, Calibration.of(examples, count=config.calibration_rows))
    pruned = time.process_time()
    result = train(
        replace(base, parameters=report.parameters),
        job.spec,
        splits,
        control=lambda: None,
        emit=lambda _: None,
        checkpoints=NoCheckpoints(),
    )
    return {
        "key": f"{name}|{job.key}",
        "pruning": name,
        "set": job.set,
        "method": job.method,
        "seed": job.seed,
        "metric": own.metric,
        "parameters_before": before,
        "parameters": report.parameters,
        "stack_weights": report.stack_weights,
        "stack_weights_kept": report.stack_weights_kept,
        "pruning_seconds": round(pruned - started, 1),
        "training_seconds": round(time.process_time() - pruned, 1),
        "validation": result.metrics.get("validation"),
        "test": result.metrics.get("test"),
        "load_average": round(os.getloadavg()[0], 2),
        **describe_run(),
    }


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--sets", nargs="+", default=["banking77_intent", "stsb_open_similarity"])
    parser.add_argument("--prunings", nargs="+", choices=PRUNINGS, default=list(PRUNINGS))
    parser.add_argument("--methods", nargs="+", default=["lora"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    asked = parser.parse_args()
    pin_threads(1)
    journal = Journal(JOURNAL)
    for name, chosen, method, seed in itertools.product(
        asked.prunings, asked.sets, asked.methods, asked.seeds
    ):
        job = QualityJob(chosen, method, seed)
        if journal.has(f"{name}|{job.key}"):
            continue
        line = run(job, name, asked.data, asked.models_dir)
        journal.add(line)
        metric, test = line["metric"], line["test"]
        print(name, chosen, test["frozen_head"][metric], test["after"][metric], flush=True)


if __name__ == "__main__":
    main()
