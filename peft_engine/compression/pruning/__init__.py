"""Pruning of a base: what is taken away is chosen once, and is all that has to be kept.

A ``PruningPlan`` says what goes: masks of single weights, or the parts that stay. With it any copy
of the base becomes the pruned one, to the bit, without the rows that the choice was made on.
"""

from peft_engine.compression.pruning.calibration import Calibration
from peft_engine.compression.pruning.plan import PruningPlan, apply_plan, pack_mask
from peft_engine.compression.pruning.prune import PruningReport, prune
from peft_engine.compression.pruning.single_weights import keep_highest

__all__ = [
    "Calibration",
    "PruningPlan",
    "PruningReport",
    "apply_plan",
    "keep_highest",
    "pack_mask",
    "prune",
]
