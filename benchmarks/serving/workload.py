"""What every side of the decoding benchmark is given, and how its speed is taken."""

import json
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from peft_engine.bases.base import Base
from peft_engine.configs.manifest import Manifest
from peft_engine.configs.methods import LoraConfig
from peft_engine.delta import Delta, tensor_name
from peft_engine.methods.table import METHODS

PROMPT_TOKENS = 64
NEW_TOKENS = 64
RANK = 8
ALPHA = 16
_TEXTS = Path(__file__).parents[2] / "examples" / "data" / "e2e_nlg"
# Large enough that greedy texts differ from the base's, small enough that they stay fluent.
_STRENGTH = 0.02


class Baton:
    """Lets sides take turns step by step, so that whatever slows the machine slows all of them.

    Args:
        names: The sides, in the order of their turns.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._waiting = list(names)
        self._condition = threading.Condition()

    def take(self, name: str) -> None:
        """Wait for the turn of a side."""
        with self._condition:
            self._condition.wait_for(lambda: self._waiting[0] == name)

    def pass_on(self, name: str) -> None:
        """End the turn of a side and wait for its next one."""
        with self._condition:
            self._waiting.append(self._waiting.pop(0))
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._waiting[0] == name)

    def leave(self, name: str) -> None:
        """Take no more turns."""
        with self._condition:
            self._waiting.remove(name)
            self._condition.notify_all()


@dataclass
class Clock:
    """What the steps of one side took: wall seconds, and processor seconds of the process.

    Of CUDA processor seconds mean nothing, and the clock is read when the device is done.

    Attributes:
        name: The side.
        baton: Whose turn it is.
        device: Where it computes.
        spans: (wall, processor, tokens written by then) of every step.
        steady: Numbers of the steps that wrote one token for every row and read nothing.
    """

    name: str
    baton: Baton
    device: torch.device
    spans: list[tuple[float, float, int]] = field(default_factory=list)
    steady: list[int] = field(default_factory=list)
    _begun: tuple[float, float] = (0.0, 0.0)

    def start(self) -> None:
        """Begin the first step."""
        self.baton.take(self.name)
        self._begun = self._now()

    def step(self, tokens: int, *, steady: bool = False) -> None:
        """End a step, after which so many tokens are written, and begin the next one."""
        wall, processor = self._now()
        if steady:
            self.steady.append(len(self.spans))
        self.spans.append((wall - self._begun[0], processor - self._begun[1], tokens))
        self.baton.pass_on(self.name)
        self._begun = self._now()

    def _now(self) -> tuple[float, float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter(), time.process_time()

    def report(self, rows: int) -> dict[str, float]:
        """Tokens a second by each clock: end to end, and of the median step that only writes."""
        found = {}
        clocks = ("wall",) if self.device.type == "cuda" else ("wall", "cpu")
        for column, clock in enumerate(clocks):
            found[f"end_to_end_{clock}"] = self.spans[-1][2] / sum(s[column] for s in self.spans)
            median = statistics.median(self.spans[number][column] for number in self.steady)
            found[f"decode_{clock}"] = rows / median
        return found


def prompts_of(base: Base, rows: int) -> list[list[int]]:
    """So many different prompts of ``PROMPT_TOKENS`` tokens of real text."""
    lines = (_TEXTS / "train.jsonl").read_text().splitlines()
    text = "\n".join(" ".join(map(str, json.loads(line).values())) for line in lines)
    ids = base.text.encode_plain(text)
    return [ids[i * PROMPT_TOKENS : (i + 1) * PROMPT_TOKENS] for i in range(rows)]


def random_lora(base: Base, *, seed: int) -> Delta:
    """A LoRA on all linears whose every tensor is random."""
    config = LoraConfig(r=RANK, alpha=ALPHA)
    generator = torch.Generator().manual_seed(seed)
    method, tensors = METHODS["lora"], {}
    for site in method.sites(base.trunk, config):
        for name, shape in method.shapes(site, config).items():
            values = _STRENGTH * torch.randn(shape, generator=generator)
            tensors[tensor_name(site.path, "lora", name)] = values
    manifest = Manifest(
        base_model=base.name,
        base_fingerprint=base.fingerprint,
        architecture=base.architecture,
        precision="fp32",
        task="text-generation",
        methods=(config,),
        template_digest=base.template_digest,
        max_length=2 * PROMPT_TOKENS,
    )
    return Delta.of(tensors, manifest)
