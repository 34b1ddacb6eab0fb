"""Whether rows of different deltas are answered together or delta by delta: measured, not believed.

Together they share the products of the base; apart each forward is simpler. Which is quicker
depends on the device and the base, so a process measures it once, when a base is loaded.
"""

import time
from dataclasses import dataclass

import torch

from peft_engine.bases.base import Base
from peft_engine.configs.manifest import Manifest
from peft_engine.configs.methods import LoraConfig
from peft_engine.delta import Delta, tensor_name
from peft_engine.methods.table import METHODS
from peft_engine.parts.batching import Example, TokenRow
from peft_engine.parts.stacks import part_read
from peft_engine.serving.engine import Engine
from peft_engine.serving.rows import PreparedRow

_ROWS = 8
_TOKENS = 16
_DELTAS = 4
"""A small batch of short texts, two rows of each delta: what requests that come at the same time
look like, and a fraction of a second for the largest base that a CPU answers with."""
_ROUNDS = 3
"""The quickest of each counts: whatever else the machine does only ever adds."""


@dataclass(frozen=True)
class Calibration:
    """What was measured.

    Attributes:
        mixed_seconds: One forward over rows of several deltas and of the plain base.
        split_seconds: The same rows, a forward for each delta.
    """

    mixed_seconds: float
    split_seconds: float

    @property
    def mixes(self) -> bool:
        """Whether rows are answered together."""
        return self.mixed_seconds <= self.split_seconds


def calibrate(engine: Engine) -> Calibration:
    """Measure one engine; in the thread that owns it, before it answers anybody.

    Args:
        engine: Its ``mixes`` is as before afterwards.

    Returns:
        What was measured.
    """
    base, before = engine.base, engine.mixes
    deltas = [_random_lora(base, seed=seed) for seed in range(_DELTAS - 1)]
    tokens = min(_TOKENS, base.max_length)
    example = Example((TokenRow([1 + token % 8 for token in range(tokens)]),))
    owners = [*deltas, None]
    rows = [PreparedRow("embed", owners[row % _DELTAS], (example,)) for row in range(_ROWS)]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    try:
        for _ in range(_ROUNDS):
            for mixes in (True, False):
                engine.mixes = mixes
                begun = time.perf_counter()
                engine.predict(rows)
                seconds[mixes].append(time.perf_counter() - begun)
    finally:
        engine.mixes = before
        for delta in deltas:
            engine.forget(delta.digest)
    return Calibration(min(seconds[True]), min(seconds[False]))


def _random_lora(base: Base, *, seed: int) -> Delta:
    config = LoraConfig(r=8)
    generator = torch.Generator().manual_seed(seed)
    method, tensors = METHODS["lora"], {}
    for site in method.sites(part_read(base.trunk, has_head=True), config):
        for name, shape in method.shapes(site, config).items():
            values = 0.01 * torch.randn(shape, generator=generator)
            tensors[tensor_name(site.path, "lora", name)] = values
    manifest = Manifest(
        base_model=base.name,
        base_fingerprint=base.fingerprint,
        architecture=base.architecture,
        precision=base.precision,
        task="text-classification",
        methods=(config,),
        template_digest=base.template_digest,
        max_length=base.max_length,
    )
    return Delta.of(tensors, manifest).to(base.device)
