"""What quantization costs after tuning: ``python -m benchmarks quantization-quality``.

A LoRA job with default settings on ``minilm`` and on bases derived from it: the head that fits the
frozen features best (before), and the adapter (after), on all test rows. Differences of less than a
point are noise of a seed. Each run is added to ``benchmarks/results/quantization-quality.json``.
"""

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.quality.grid import BASES, SETS
from benchmarks.quality.rows import read_splits
from benchmarks.record import RESULTS, write_result
from peft_engine.bases.base import describe_base
from peft_engine.compression.derive import load_derived
from peft_engine.configs import JobSpec
from peft_engine.configs.base import QUANTIZATIONS
from peft_engine.runtime import pin_threads
from peft_engine.training import NoCheckpoints, train

BASE = "minilm"
RESULT = "quantization-quality"


def run(name: str, scheme: str, seed: int, *, data: Path, models_dir: Path) -> dict[str, Any]:
    """Train one job.

    Args:
        name: The data set.
        scheme: ``none`` or a quantization.
        seed: Of the job.
        data: Folder of the data sets.
        models_dir: Folder of the base models.

    Returns:
        What came out.
    """
    own = SETS[name]
    spec = JobSpec.model_validate(
        {
            "dataset_id": name,
            "base_model": BASE,
            "task": own.task,
            "base": {"quantization": scheme},
            "training": {"seed": seed, "precision": "fp32"},
        }
    )
    info = describe_base(BASES[BASE], name=BASE, models_dir=models_dir)
    base = load_derived(info, spec.base, precision="fp32")
    started = time.process_time()
    result = train(
        base,
        spec,
        read_splits(data / name, task=own.task),
        control=lambda: None,
        emit=lambda _: None,
        checkpoints=NoCheckpoints(),
    )
    test = result.metrics["test"]
    return {
        "set": name,
        "scheme": scheme,
        "seed": seed,
        "metric": own.metric,
        "frozen_head": test["frozen_head"][own.metric],
        "after": test["after"][own.metric],
        "bytes": base.bytes,
        "processor_seconds": round(time.process_time() - started, 1),
        "resolved": dict(result.resolved),
    }


def main() -> None:
    """Run what has not been run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--sets", nargs="+", default=["stsb_open_similarity", "banking77_intent"])
    parser.add_argument("--schemes", nargs="+", default=["none", *QUANTIZATIONS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    asked = parser.parse_args()
    pin_threads(1)
    for wanted in itertools.product(asked.sets, asked.schemes, asked.seeds):
        if any((own["set"], own["scheme"], own["seed"]) == wanted for own in _read_runs()):
            continue
        made = run(*wanted, data=asked.data, models_dir=asked.models_dir)
        runs = [*_read_runs(), made]  # another process may have added its own meanwhile
        summary = {
            f"{own['set']} {own['scheme']} {own['seed']}": {
                "before": round(own["frozen_head"], 4),
                "after": round(own["after"], 4),
            }
            for own in runs
        }
        write_result(RESULT, summary=summary, runs=runs)


def _read_runs() -> list[dict[str, Any]]:
    path = RESULTS / f"{RESULT}.json"
    return json.loads(path.read_text())["runs"] if path.exists() else []


if __name__ == "__main__":
    main()
