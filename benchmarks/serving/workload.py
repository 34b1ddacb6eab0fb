"""What every side of the decoding benchmark is given, and how its speed is taken."""

import json
import time
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


@dataclass
class Clock:
    """Moments of one run: wall seconds, processor seconds of the process, tokens written so far.

    Attributes:
        marks: (wall, processor, tokens) at the start and after every step.
        steady: Numbers of the marks whose step wrote one token for every row and read nothing.
    """

    marks: list[tuple[float, float, int]] = field(default_factory=list)
    steady: set[int] = field(default_factory=set)

    def mark(self, tokens: int, *, steady: bool = False) -> None:
        """Note that so many tokens are written now."""
        if steady:
            self.steady.add(len(self.marks))
        self.marks.append((time.perf_counter(), time.process_time(), tokens))

    def report(self) -> dict[str, float]:
        """Tokens a second, end to end and of decoding alone, by both clocks."""
        found = {}
        for column, clock in enumerate(("wall", "cpu")):
            first, last = self.marks[0], self.marks[-1]
            found[f"end_to_end_{clock}"] = last[2] / (last[column] - first[column])
            spans = [(self.marks[i - 1], self.marks[i]) for i in sorted(self.steady)]
            seconds = sum(after[column] - before[column] for before, after in spans)
            tokens = sum(after[2] - before[2] for before, after in spans)
            found[f"decode_{clock}"] = tokens / seconds
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
