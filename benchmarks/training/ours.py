"""Our side of the comparison, in a process of its own; prints one JSON object as its last line."""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from benchmarks.training.ablations import ABLATIONS
from benchmarks.training.cases import (
    CASES,
    LORA_ALPHA,
    LORA_RANK,
    MAX_GRAD_NORM,
    WARMUP_RATIO,
    Case,
    Clock,
)
from peft_engine.bases.base import Base, load_base
from peft_engine.configs import JobSpec
from peft_engine.runtime import pick_device, pin_threads
from peft_engine.training import NoCheckpoints, TrainingEvent, train


def spec_of(case: Case, base: Base, training: dict[str, object], *, steps: int) -> JobSpec:
    """The job as a user would send it, with the case's numbers."""
    return JobSpec.model_validate(
        {
            "dataset_id": case.data,
            "base_model": base.name,
            "task": case.task,
            "method": {"type": "lora", "r": LORA_RANK, "alpha": LORA_ALPHA},
            "training": {
                "max_steps": steps,
                "epochs": 100,
                "batch_size": case.batch_rows,
                "learning_rate": case.learning_rate,
                "head_learning_rate": case.head_learning_rate,
                "weight_decay": case.weight_decay,
                "warmup_ratio": WARMUP_RATIO,
                "max_grad_norm": MAX_GRAD_NORM,
                "eval_generate_rows": 0,
                **training,
            },
        }
    )


def main() -> None:
    """Train once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--without", choices=ABLATIONS, default=None)
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", default=None, help="of the base; None: the case's own")
    parser.add_argument("--steps", type=int, default=None, help="None: the case's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate", action="store_true")
    asked = parser.parse_args()
    pin_threads(asked.threads)
    case, device = CASES[asked.case], pick_device(asked.device)
    steps = asked.steps or (case.judged_steps if asked.evaluate else case.steps_on(device))
    training = {"seed": asked.seed} | (ABLATIONS[asked.without]() if asked.without else {})
    base = load_base(
        case.reference,
        name=case.base,
        models_dir=asked.models_dir,
        device=str(device),
        precision=asked.precision or case.precision_on(device),
    )
    splits = {"train": case.records("train")}
    if asked.evaluate:
        splits["test"] = case.records("test")
    clock, losses, tokens = Clock(device, steps), [], [0]
    found: dict[str, Any] = {"precision": base.precision}

    def listen(event: TrainingEvent) -> None:
        if event.kind == "progress":
            clock.tick()
            losses.append(event.data["loss"])
            tokens.append(event.data["tokens"])
        if event.kind == "progress" and event.data["step"] == steps:
            # Before the test split takes its memory.
            of_steps = [now - before for before, now in itertools.pairwise(tokens)]
            found.update(clock.report(case, losses=losses, tokens=of_steps))
        if event.kind == "resolved":
            found["resolved"] = event.data["resolved"]

    result = train(
        base,
        spec_of(case, base, training, steps=steps),
        splits,
        control=lambda: None,
        emit=listen,
        checkpoints=NoCheckpoints(),
    )
    if asked.evaluate:
        found["test"] = result.metrics["test"]["after"][case.metric]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
