"""Options of norm tuning."""

from typing import Literal

from peft_engine.configs.methods.options import MethodOptions


class NormConfig(MethodOptions):
    """Only gains and biases of norms learn (Zhao et al. 2024, arXiv 2312.11420)."""

    type: Literal["norm"] = "norm"
