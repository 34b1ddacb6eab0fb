"""What quantization costs after tuning: ``python -m benchmarks quantization-quality``.

A LoRA job with default settings on ``minilm`` and on bases derived from it: the head that fits the
frozen features best (before), and the adapter (after), on all test rows. One seed: differences of
less than a point are noise. Each run is added to ``benchmarks/results/quantization-quality.json``.
"""

import argparse
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


def run(name: str, scheme: str, *, data: Path, models_dir: Path) -> dict[str, Any]:
    """Train one job.

    Args:
        name: The data set.
        scheme: ``none`` or a quantization.
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
            "training": {"seed": 0, "precision": "fp32"},
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
    asked = parser.parse_args()
    pin_threads(1)
    for name in asked.sets:
        for scheme in asked.schemes:
            path = RESULTS / f"{RESULT}.json"
            runs = json.loads(path.read_text())["runs"] if path.exists() else []
            if any((own["set"], own["scheme"]) == (name, scheme) for own in runs):
                continue
            made = run(name, scheme, data=asked.data, models_dir=asked.models_dir)
            # another process may have added its own meanwhile
            runs = json.loads(path.read_text())["runs"] if path.exists() else []
            runs.append(made)
            summary = {
                f"{own['set']} {own['scheme']}": {
                    "before": round(own["frozen_head"], 4),
                    "after": round(own["after"], 4),
                }
                for own in runs
            }
            write_result(RESULT, summary=summary, runs=runs)


if __name__ == "__main__":
    main()
