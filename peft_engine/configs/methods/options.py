"""What several methods share: which layers, which modules."""

from typing import Annotated, Literal

from pydantic import Field

from peft_engine.configs.model import Config

LayerIndex = Annotated[int, Field(ge=0, le=1000)]
LayerCount = Annotated[int, Field(ge=1, le=1000)]
SiteSuffix = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.]+$")]
Targets = Literal["all-linear"] | tuple[SiteSuffix, ...]
Activation = Literal["relu", "swish", "gelu", "tanh"]


class FirstLayers(Config):
    """The layers nearest to the input."""

    first: LayerCount = Field(description="How many layers, counted from the input.")


class LastLayers(Config):
    """The layers nearest to the output: the frozen ones below need no backward pass."""

    last: LayerCount = Field(description="How many layers, counted from the output.")


LayerChoice = Literal["all"] | tuple[LayerIndex, ...] | FirstLayers | LastLayers


class MethodOptions(Config):
    """Options of every method."""

    layers: LayerChoice = Field(
        "all",
        description='Which layers take part: `"all"`, numbers counted from 0, `{"last": n}` or '
        '`{"first": n}`. Modules outside the layers (embeddings, the last norm) take part only '
        'with `"all"`.',
    )
