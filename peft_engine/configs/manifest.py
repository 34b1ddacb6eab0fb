"""What a delta says of itself. No times and no ids: the same training gives the same bytes."""

from typing import Literal

from pydantic import Field

from peft_engine.configs.methods import MethodConfig
from peft_engine.configs.model import Config

DELTA_FORMAT: Literal["tunery-delta/1"] = "tunery-delta/1"
"""Version of the file format; a reader refuses any other."""


class HeadSpec(Config):
    """A task head over pooled features: ``logits = weight · (scale · pooled) + bias``."""

    kind: Literal["linear"] = "linear"
    pooling: Literal["mean", "cls", "last"]
    normalize: bool = Field(description="Pooled features are scaled to unit length first.")
    scale: float = Field(gt=0, description="Factor on the features, so that weights stay near 1.")


class Manifest(Config):
    """Everything needed to answer with a delta, and to refuse it where it does not belong."""

    format: Literal["tunery-delta/1"] = DELTA_FORMAT
    base_model: str
    base_fingerprint: str
    architecture: Literal["encoder", "causal", "encoder-decoder"]
    precision: Literal["fp32", "bf16"]
    task: str
    methods: tuple[MethodConfig, ...]
    labels: tuple[str, ...] | None = None
    head: HeadSpec | None = None
    template_digest: str
    max_length: int = Field(ge=1)
