"""Options of prefix tuning."""

from typing import Literal

from pydantic import Field

from peft_engine.configs.methods.options import MethodOptions


class PrefixConfig(MethodOptions):
    """Keys and values that every query sees before its own (Li & Liang 2021, arXiv 2101.00190).

    With a gate per head that starts at zero (Zhang et al. 2023, arXiv 2303.16199), so that training
    starts at the base.
    """

    type: Literal["prefix"] = "prefix"
    length: int = Field(
        16, ge=1, le=512, description="Virtual tokens: pairs of a key and a value in each layer."
    )
    gate: Literal["zero", "none"] = Field(
        "zero",
        description="`zero`: the prefix has a softmax of its own and a factor per head that starts "
        "at zero. `none`: one softmax over prefix and tokens, as in the paper; such a job does not "
        "start at its base.",
    )
