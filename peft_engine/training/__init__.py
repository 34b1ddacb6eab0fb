"""Training: one loop, a delta for each job, alone or with other jobs on the same base."""

from peft_engine.training.alone import train
from peft_engine.training.estimating import Bounds, Estimate, estimate
from peft_engine.training.events import (
    Checkpoints,
    Control,
    Emit,
    NoCheckpoints,
    TrainingEvent,
    TrainingResult,
)
from peft_engine.training.head_start import FeatureStore
from peft_engine.training.loop import Assignment
from peft_engine.training.together import Entrant, Exactness, Limits, train_together

__all__ = [
    "Assignment",
    "Bounds",
    "Checkpoints",
    "Control",
    "Emit",
    "Entrant",
    "Estimate",
    "Exactness",
    "FeatureStore",
    "Limits",
    "NoCheckpoints",
    "TrainingEvent",
    "TrainingResult",
    "estimate",
    "train",
    "train_together",
]
