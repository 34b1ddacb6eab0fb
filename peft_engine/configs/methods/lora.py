"""Options of LoRA and of what grew from it."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from peft_engine.configs.methods.options import MethodOptions, SiteSuffix, Targets

Rank = Annotated[int, Field(ge=1, le=512)]
Alpha = Annotated[float, Field(gt=0, le=4096)]
T = TypeVar("T")

_RANK = 16
"""What ``auto`` means where no base has settled it."""


class LoraConfig(MethodOptions):
    """Low-rank update ``W + (alpha / r) B A`` of linear layers (Hu et al. 2021, arXiv 2106.09685).

    The defaults (every linear, alpha = 2 r) follow the ablations of QLoRA (arXiv 2305.14314) and
    "LoRA Without Regret" (Schulman 2025): all linears beat attention alone at equal size.
    """

    type: Literal["lora"] = "lora"
    r: Literal["auto"] | Rank = Field(
        "auto",
        description="Rank of the update; auto: 16, or 8 where 16 would be more than 3 % of the "
        "base's parameters.",
    )
    alpha: Literal["auto"] | Alpha = Field(
        "auto", description="The update is scaled by alpha / r; auto: 2 r."
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of the layer's inputs hidden from the update."
    )
    targets: Targets = Field(
        "all-linear",
        description="`all-linear`, or endings of module names such as `query` or `mlp.up_proj`.",
    )
    rslora: bool = Field(
        False,
        description="Scale by alpha / √r, so that high ranks learn as fast as low ones "
        "(Kalajdzievski 2023, arXiv 2312.03732).",
    )
    dora: bool = Field(
        False,
        description="Learn the length of each row of W + ΔW apart from its direction "
        "(Liu et al. 2024, arXiv 2402.09353).",
    )
    b_learning_rate_ratio: float = Field(
        1.0,
        ge=1,
        le=256,
        description="B learns so many times faster than A; LoRA+ uses 16 "
        "(Hayou et al. 2024, arXiv 2402.12354).",
    )
    freeze_a: bool = Field(
        False,
        description="A keeps its random start values and only B learns: LoRA-FA "
        "(Zhang et al. 2023, arXiv 2308.03303).",
    )
    rank_pattern: dict[SiteSuffix, Rank] = Field(
        default_factory=dict,
        max_length=64,
        description="Rank of modules whose name ends in the key; the longest ending wins.",
    )
    alpha_pattern: dict[SiteSuffix, Alpha] = Field(
        default_factory=dict,
        max_length=64,
        description="alpha of modules whose name ends in the key; the longest ending wins.",
    )

    @model_validator(mode="after")
    def _learns_one_way(self) -> "LoraConfig":
        if self.freeze_a and self.b_learning_rate_ratio != 1:
            raise ValueError("freeze_a leaves only B to learn: leave b_learning_rate_ratio at 1")
        return self

    @property
    def own_r(self) -> int:
        """The rank; 16 where ``auto`` was not settled for a base."""
        return _RANK if self.r == "auto" else self.r

    @property
    def own_alpha(self) -> float:
        """The numerator of the scale, ``auto`` resolved."""
        return 2.0 * self.own_r if self.alpha == "auto" else self.alpha

    def rank_at(self, path: str) -> int:
        """Rank at a module.

        Args:
            path: Its name.

        Returns:
            ``r``, or what a pattern says.
        """
        return _longest_ending(self.rank_pattern, path, self.own_r)

    def scale_at(self, path: str) -> float:
        """Factor of the update at a module.

        Args:
            path: Its name.

        Returns:
            alpha / r, or alpha / √r with ``rslora``.
        """
        rank = self.rank_at(path)
        alpha = _longest_ending(self.alpha_pattern, path, self.own_alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def _longest_ending(pattern: Mapping[str, T], path: str, default: T) -> T:
    endings = [ending for ending in pattern if f".{path}".endswith(f".{ending}")]
    return pattern[max(endings, key=len)] if endings else default
