"""Options of BitFit."""

from typing import Literal

from pydantic import Field

from peft_engine.configs.methods.options import MethodOptions


class BitfitConfig(MethodOptions):
    """Only biases learn (Ben Zaken et al. 2022, arXiv 2106.10199)."""

    type: Literal["bitfit"] = "bitfit"
    norms: bool = Field(True, description="Biases of norms learn too, as in the paper.")
    biases: Literal["auto", "existing", "effective", "all", "lean"] = Field(
        "auto",
        description="`existing`: those that the base has, as in the paper. `effective`: existing, "
        "without those of keys and values where they do nothing that another bias does not do. "
        "`all`: every linear (and norm) gets one. `lean`: all, without the same keys and values, "
        "without norms inside the layers, and of a gated FFN the gate's alone. `auto`: effective; "
        "lean on a base that has no biases.",
    )
