"""Training: one job, one loop, one delta."""

from peft_engine.training.events import (
    Checkpoints,
    Control,
    Emit,
    NoCheckpoints,
    TrainingEvent,
    TrainingResult,
)
from peft_engine.training.head_start import FeatureStore
from peft_engine.training.loop import train

__all__ = [
    "Checkpoints",
    "Control",
    "Emit",
    "FeatureStore",
    "NoCheckpoints",
    "TrainingEvent",
    "TrainingResult",
    "train",
]
