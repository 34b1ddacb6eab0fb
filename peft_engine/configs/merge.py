"""How several adapters become one, as a user asks for it."""

from typing import Literal

from pydantic import Field

from peft_engine.configs.methods.lora import Rank
from peft_engine.configs.model import Config

MergeMethod = Literal["linear", "ties", "dare-linear", "dare-ties"]


class MergeSpec(Config):
    """A merge of the changes that several adapters make to the weights of one base.

    ``linear``: their weighted sum (task arithmetic, Ilharco et al. 2022, arXiv 2212.04089).
    ``ties``: small values are cut, and where signs disagree the minority is left out (Yadav et al.
    2023, arXiv 2306.01708). ``dare-…``: values are dropped at random and the rest made larger
    (Yu et al. 2023, arXiv 2311.03099).
    """

    method: MergeMethod = "linear"
    density: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of the values of each adapter that `ties` and `dare` keep.",
    )
    majority: Literal["total", "frequency"] = Field(
        "total", description="Whether values or adapters vote on the sign that `ties` keeps."
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Fixes what `dare` drops.")
    into: Literal["lora", "dense"] = Field(
        "lora",
        description="`lora`: the closest matrices of rank `r` (singular value decomposition); "
        "`dense`: the whole difference, as large as the base.",
    )
    r: Rank | None = Field(
        None,
        description="Rank of the result; null: the ranks of all adapters together, 64 at most.",
    )
