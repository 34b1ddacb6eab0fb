"""Options of sparse updates."""

from typing import Literal

from pydantic import Field

from peft_engine.configs.methods.options import MethodOptions, Targets


class MaskConfig(MethodOptions):
    """Only chosen entries of the weights learn (Sung et al. 2021, arXiv 2111.09839).

    Each weight matrix gives the same share of its entries, so that the size of a delta follows from
    its options.
    """

    type: Literal["mask"] = "mask"
    pattern: Literal["unstructured", "neuron"] = Field(
        "unstructured",
        description="`unstructured`: single entries. `neuron`: whole rows of a weight, which is "
        "quicker to serve.",
    )
    selection: Literal["random", "magnitude", "fisher", "gradient"] = Field(
        "fisher",
        description="Which entries: at random, the largest weights, the largest mean squared "
        "gradient (Fisher information), or the largest mean gradient.",
    )
    density: float = Field(
        0.005, gt=0, le=0.5, description="Share of the entries (or rows) that learn; at least one."
    )
    samples: int = Field(
        128, ge=1, le=8192, description="Training rows looked at by `fisher` and `gradient`."
    )
    targets: Targets = Field(
        "all-linear",
        description="`all-linear`, or endings of module names such as `query` or `mlp.up_proj`.",
    )
