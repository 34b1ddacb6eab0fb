"""What a delta says of itself. No times and no ids: the same training gives the same bytes."""

from typing import Annotated, Literal

from pydantic import Field

from peft_engine.configs.families import Architecture
from peft_engine.configs.methods import MethodConfig
from peft_engine.configs.model import Config

DELTA_FORMAT: Literal["tunery-delta/1"] = "tunery-delta/1"
"""Version of the file format; a reader refuses any other."""


PoolingName = Literal["mean", "cls", "last"]
Reading = Literal["joined", "apart"]
"""Two texts in one row, or one row each."""


HiddenActivation = Literal["tanh", "relu", "gelu"]


class HeadSpec(Config):
    """A head over pooled features: ``logits = weight · (scale · pooled) + bias``.

    ``linear`` names one class (softmax), ``multi-label`` any number of them (sigmoid). With
    ``hidden`` a layer comes between, as in the heads of transformers and AdapterHub:
    ``logits = weight · act(hidden_weight · (scale · pooled) + hidden_bias) + bias``.
    """

    kind: Literal["linear", "multi-label"] = "linear"
    pooling: PoolingName
    normalize: bool = Field(description="Pooled features are scaled to unit length first.")
    scale: float = Field(gt=0, description="Factor on the features, so that weights stay near 1.")
    hidden: HiddenActivation | None = Field(
        None, description="Activation of a layer before the last one; left out when there is none."
    )
    threshold: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Least probability of a label that is given, of a multi-label head; left out "
        "when it is one half. Losses and probabilities do not know it.",
    )


class ValueHeadSpec(Config):
    """A number: ``value = center + spread · (weight · features + bias)``."""

    kind: Literal["value"] = "value"
    pooling: PoolingName
    reading: Reading
    normalize: bool = Field(
        True,
        description="Pooled features are scaled to unit length first; left out when they are. "
        "Heads of transformers read them as they are.",
    )
    center: float = Field(description="Mean of the training values.")
    spread: float = Field(gt=0, description="Standard deviation of the training values.")


class ChoiceHeadSpec(Config):
    """A score for each choice: ``weight · features``, softmax over the choices of a question."""

    kind: Literal["choice"] = "choice"
    pooling: PoolingName
    reading: Reading


class TagHeadSpec(Config):
    """Tags of words: ``logits = weight · [scale · hidden; spelling] + bias + words[which]``.

    ``hidden`` is that of one token of the word, ``which`` a hash of the word. With ``transitions``
    the tags of a row are those with the largest sum of log-probabilities of words and of
    ``transitions[0, first tag]`` and ``transitions[1 + tag before, tag]``. ``outside_penalty`` is
    taken from the logit of ``O`` before that, in deciding alone: losses and probabilities do not
    know it.
    """

    kind: Literal["tags"] = "tags"
    token: Literal["first", "last"] = Field(description="Which token speaks for its word.")
    scale: float = Field(
        gt=0, description="Factor on the hidden state, so that weights stay near 1."
    )
    spelling: bool = Field(
        False, description="Whether how a word and its neighbours are written is a feature too."
    )
    words: int = Field(
        0, ge=0, le=65_536, description="Rows of the table of weights by word; 0: there is none."
    )
    transitions: bool = Field(
        False, description="Whether the tags of a row are decided together; left out when not."
    )
    outside_penalty: float = Field(
        0.0, ge=0, le=20, description="How much less O counts in deciding; left out when 0."
    )


class RelationHeadSpec(Config):
    """Classes of two spans: ``weight · [pooled; head span; tail span] + bias``."""

    kind: Literal["relation"] = "relation"
    pooling: PoolingName


class SpanHeadSpec(Config):
    """Start and end of an answer: ``weight · (scale · hidden) + bias`` at every token."""

    kind: Literal["span"] = "span"
    scale: float = Field(gt=0, description="Factor on the features, so that weights stay near 1.")
    abstains: bool = Field(description="Whether there may be no answer.")


AnyHeadSpec = (
    HeadSpec | ValueHeadSpec | ChoiceHeadSpec | TagHeadSpec | RelationHeadSpec | SpanHeadSpec
)
"""Union of all heads, told apart by ``kind``."""


class Manifest(Config):
    """Everything needed to answer with a delta, and to refuse it where it does not belong."""

    format: Literal["tunery-delta/1"] = DELTA_FORMAT
    base_model: str
    base_fingerprint: str
    architecture: Architecture
    precision: Literal["fp32", "bf16"]
    task: str
    methods: tuple[MethodConfig, ...]
    labels: tuple[str, ...] | None = None
    head: Annotated[AnyHeadSpec, Field(discriminator="kind")] | None = None
    template_digest: str
    max_length: int = Field(ge=1)
    parent_digest: str | None = Field(
        None,
        pattern=r"^sha256:[0-9a-f]{64}$",
        description="Digest of the delta that this one was trained from; left out when none was.",
    )
