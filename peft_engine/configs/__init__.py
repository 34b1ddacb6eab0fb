"""What a user may ask of the engine: torch-free pydantic, one definition of every knob.

The same classes are the API schema, the JSON in the database and the engine's arguments.
"""

from peft_engine.configs.base import BaseConfig
from peft_engine.configs.job import JobSpec
from peft_engine.configs.lineage import inherit_methods
from peft_engine.configs.manifest import AnyHeadSpec, HeadSpec, Manifest
from peft_engine.configs.methods import (
    BitfitConfig,
    BottleneckConfig,
    FullConfig,
    HeadOnlyConfig,
    Ia3Config,
    LoraConfig,
    MaskConfig,
    MethodConfig,
    NormConfig,
    PrefixConfig,
)
from peft_engine.configs.pruning import PruningConfig
from peft_engine.configs.sweep import SearchField, SweepSpec
from peft_engine.configs.training import AdversarialConfig, EarlyStoppingConfig, TrainingConfig

__all__ = [
    "AdversarialConfig",
    "AnyHeadSpec",
    "BaseConfig",
    "BitfitConfig",
    "BottleneckConfig",
    "EarlyStoppingConfig",
    "FullConfig",
    "HeadOnlyConfig",
    "HeadSpec",
    "Ia3Config",
    "JobSpec",
    "LoraConfig",
    "Manifest",
    "MaskConfig",
    "MethodConfig",
    "NormConfig",
    "PrefixConfig",
    "PruningConfig",
    "SearchField",
    "SweepSpec",
    "TrainingConfig",
    "inherit_methods",
]
