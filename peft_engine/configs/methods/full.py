"""Options of full fine-tuning."""

from typing import Literal

from peft_engine.configs.methods.options import MethodOptions


class FullConfig(MethodOptions):
    """Every weight of the trunk learns, stored as a difference: the dense baseline.

    As large as the base itself. Weight decay pulls towards the base, not towards zero (L2-SP, Li
    et al. 2018, arXiv 1802.01483).
    """

    type: Literal["full"] = "full"
