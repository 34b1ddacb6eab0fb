"""Methods of parameter-efficient fine-tuning, as a user asks for them."""

from typing import Annotated, Literal

from pydantic import Field

from peft_engine.configs.model import Config

LayerIndex = Annotated[int, Field(ge=0, le=1000)]
SiteSuffix = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.]+$")]


class LoraConfig(Config):
    """Low-rank update ``W + (alpha / r) B A`` of linear layers (Hu et al. 2021, arXiv 2106.09685).

    The defaults (every linear, alpha = 2 r) follow the ablations of QLoRA (arXiv 2305.14314) and
    "LoRA Without Regret" (Schulman 2025): all linears beat attention alone at equal size.
    """

    type: Literal["lora"] = "lora"
    r: int = Field(16, ge=1, le=512, description="Rank of the update.")
    alpha: float = Field(32.0, gt=0, le=4096, description="The update is scaled by alpha / r.")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of the layer's inputs hidden from the update."
    )
    targets: Literal["all-linear"] | tuple[SiteSuffix, ...] = Field(
        "all-linear",
        description="`all-linear`, or endings of module names such as `query` or `mlp.up_proj`.",
    )
    layers: Literal["all"] | tuple[LayerIndex, ...] = Field(
        "all", description="Which layers of the base take part, counted from 0."
    )

    @property
    def scale(self) -> float:
        """Factor of the update: alpha / r."""
        return self.alpha / self.r


MethodConfig = LoraConfig
"""Union of all methods, told apart by ``type``."""

METHOD_NAMES = ("lora",)
