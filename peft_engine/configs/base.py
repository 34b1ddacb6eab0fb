"""How the frozen base model is prepared before training; each choice names a derived base."""

from typing import Literal

from pydantic import Field

from peft_engine.configs.model import Config


class BaseConfig(Config):
    """The base as it is: neither quantized nor pruned."""

    quantization: Literal["none"] = Field("none", description="`none`: the weights as published.")
    pruning: None = Field(None, description="null: no weight is removed.")
