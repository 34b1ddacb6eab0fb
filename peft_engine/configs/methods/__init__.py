"""Methods of parameter-efficient fine-tuning, as a user asks for them: one file each."""

from typing import Annotated

from pydantic import Field

from peft_engine.configs.methods.bitfit import BitfitConfig
from peft_engine.configs.methods.bottleneck import BottleneckConfig
from peft_engine.configs.methods.full import FullConfig
from peft_engine.configs.methods.head_only import HeadOnlyConfig
from peft_engine.configs.methods.ia3 import Ia3Config
from peft_engine.configs.methods.lora import LoraConfig
from peft_engine.configs.methods.mask import MaskConfig
from peft_engine.configs.methods.norm import NormConfig
from peft_engine.configs.methods.options import FirstLayers, LastLayers, LayerChoice
from peft_engine.configs.methods.prefix import PrefixConfig

MethodConfig = Annotated[
    LoraConfig
    | BottleneckConfig
    | BitfitConfig
    | Ia3Config
    | NormConfig
    | MaskConfig
    | PrefixConfig
    | HeadOnlyConfig
    | FullConfig,
    Field(discriminator="type"),
]
"""Union of all methods, told apart by ``type``."""

METHOD_NAMES = (
    "lora",
    "bottleneck",
    "bitfit",
    "ia3",
    "norm",
    "mask",
    "prefix",
    "head-only",
    "full",
)

SOLITARY_METHODS = frozenset({"head-only", "full"})
"""Methods that leave nothing for another one to add."""

__all__ = [
    "METHOD_NAMES",
    "SOLITARY_METHODS",
    "BitfitConfig",
    "BottleneckConfig",
    "FirstLayers",
    "FullConfig",
    "HeadOnlyConfig",
    "Ia3Config",
    "LastLayers",
    "LayerChoice",
    "LoraConfig",
    "MaskConfig",
    "MethodConfig",
    "NormConfig",
    "PrefixConfig",
]
