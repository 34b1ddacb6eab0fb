"""Options of (IA)³."""

from typing import Literal

from peft_engine.configs.methods.options import MethodOptions


class Ia3Config(MethodOptions):
    """Keys, values and inner activations of the FFN are scaled (Liu et al. 2022, arXiv 2205.05638).

    One learned factor for each feature, 1 at the start.
    """

    type: Literal["ia3"] = "ia3"
