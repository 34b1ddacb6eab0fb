"""Options of bottleneck adapters."""

from typing import Annotated, Literal

from pydantic import Field

from peft_engine.configs.methods.options import Activation, MethodOptions

Reduction = Annotated[int, Field(ge=1, le=1024)]
Width = Annotated[int, Field(ge=1, le=8192)]
Factor = Annotated[float, Field(gt=0, le=100)]
Variant = Literal["houlsby", "pfeiffer", "parallel"]

_ACTIVATIONS: dict[Variant, Activation] = {
    "houlsby": "swish",
    "pfeiffer": "relu",
    "parallel": "relu",
}
_REDUCTIONS: dict[Variant, int] = {"houlsby": 16, "pfeiffer": 16, "parallel": 2}
_SCALINGS: dict[Variant, float] = {"houlsby": 1.0, "pfeiffer": 1.0, "parallel": 4.0}


class BottleneckConfig(MethodOptions):
    """Two small layers with a non-linearity between them beside each sub-layer.

    ``houlsby`` (Houlsby et al. 2019, arXiv 1902.00751): after attention and after the FFN.
    ``pfeiffer`` (Pfeiffer et al. 2021, arXiv 2005.00247): after the FFN. ``parallel`` (He et al.
    2022, arXiv 2110.04366): beside the FFN.
    """

    type: Literal["bottleneck"] = "bottleneck"
    variant: Variant = Field("houlsby", description="`houlsby`, `pfeiffer` or `parallel`.")
    reduction: Literal["auto"] | Reduction | None = Field(
        "auto",
        description="The bottleneck is so many times narrower than the hidden state; auto and "
        "null: `size` says how wide it is.",
    )
    size: Literal["auto"] | Width = Field(
        "auto",
        description="Width of the bottleneck itself; auto: by `reduction`, and where that is auto "
        "too the widest of 256, 128, … 8 with at most 3 % of the base's parameters. Beside a "
        "`reduction` it must be what that comes to.",
    )
    activation: Literal["auto"] | Activation = Field(
        "auto", description="auto: `relu`; a stored `houlsby` that says auto has `swish`."
    )
    scaling: Literal["auto", "learned"] | Factor = Field(
        "auto",
        description="Factor on what is added; auto: 1, for `parallel` 4; `learned` starts there.",
    )

    @property
    def own_activation(self) -> Activation:
        """The activation, ``auto`` resolved."""
        return _ACTIVATIONS[self.variant] if self.activation == "auto" else self.activation

    @property
    def own_scaling(self) -> float:
        """The factor, or the start value of a learned one."""
        scaling = self.scaling
        return scaling if isinstance(scaling, float) else _SCALINGS[self.variant]

    def width(self, features: int) -> int:
        """Width of the bottleneck.

        Args:
            features: Width of the hidden state.

        Returns:
            At least 1. Where neither ``size`` nor ``reduction`` is a number, that of AdapterHub:
            deltas that were stored so mean it.
        """
        if self.size != "auto":
            return self.size
        own = self.reduction
        reduction = _REDUCTIONS[self.variant] if own is None or own == "auto" else own
        return max(1, features // reduction)
