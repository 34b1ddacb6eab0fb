"""Body and answer of ``POST /predict``."""

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from app.schemas.shared import MAX_REFERENCE_CHARS, Asked, Sent, Text
from peft_engine.configs.model import TaskName


class PredictOptions(Asked):
    """How to answer. A trained classifier takes none of these."""

    max_new_tokens: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Most tokens that are written; null: 128, or what the prompt leaves of the "
        "context.",
    )
    temperature: float | None = Field(
        None, ge=0, le=10, description="0 (and null): always the likeliest token."
    )
    top_p: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Drawn are the likeliest tokens that have this probability together; null: 1.",
    )
    top_k: int | None = Field(
        None, ge=0, le=1_000_000, description="Drawn are so many likeliest tokens; 0 (null): all."
    )
    stop: tuple[Text, ...] | Text | None = Field(
        None, description="Texts at which generation ends, 16 at most; they are cut off."
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=2**63 - 1,
        description="Start of a row's own random numbers: the same seed, the same text, and of "
        "`n` continuations each the next seed. null: 0.",
    )
    repetition_penalty: float | None = Field(
        None,
        ge=0.1,
        le=10,
        description="Above 1: tokens of prompt and text become less likely (CTRL).",
    )
    presence_penalty: float | None = Field(
        None, ge=-2, le=2, description="Taken from the logits of tokens that were written already."
    )
    frequency_penalty: float | None = Field(
        None, ge=-2, le=2, description="The same, times how often."
    )
    logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        description="The output tells for every token its log-probability, and so many of the "
        "likeliest ones.",
    )
    n: int | None = Field(
        None,
        ge=1,
        le=16,
        description="Continuations of every row, in `choices`; needs a temperature.",
    )
    labels: tuple[Text, ...] | None = Field(
        None,
        min_length=2,
        max_length=1000,
        description="The plain base of an encoder chooses among these (zero-shot).",
    )
    stream: bool = Field(
        False, description="Of the whole call: server-sent events while the text is written."
    )


class PredictRequest(Asked):
    """Rows to answer, each by an adapter or by the plain base."""

    adapter_id: Text | None = Field(
        None,
        max_length=MAX_REFERENCE_CHARS,
        description="Id, name (newest version), `name@version` or alias, or the id of a checkpoint "
        "(`GET /jobs/{id}/checkpoints`); null asks the plain base.",
        examples=["support-intents"],
    )
    base_model: Text | None = Field(
        None,
        max_length=256,
        description="Needed for rows without an adapter; with an adapter it must be its base.",
    )
    task: TaskName | Literal["embedding"] | None = Field(
        None,
        description="For rows of the plain base; an adapter brings its own task. `embedding`: "
        "every row of the call is answered by the feature of its text, adapters in force; bases "
        "that are encoders only.",
    )
    compare: tuple[Text | None, ...] | None = Field(
        None,
        min_length=1,
        max_length=8,
        description="Adapters that answer every input too, in the same batch; null: the plain base "
        "of the row's own adapter. For a text classifier the base chooses among the adapter's "
        "labels, unless `options.labels` says otherwise.",
        examples=[[None, "support-intents@2"]],
    )
    inputs: list[Any] = Field(
        min_length=1,
        description="One entry a row: a text, or the record of the task without its label. An "
        "object may carry `adapter_id`, `base_model` and `options` of its own, beside the record "
        'or as `{"adapter_id": …, "input": …}`.',
        examples=[["My card has not arrived", {"adapter_id": None, "input": "Who are you?"}]],
    )
    options: PredictOptions = PredictOptions()


class Receipt(Sent):
    """Which weights gave the answer."""

    adapter_id: str | None = Field(None, description="The adapter, or the checkpoint, by its id.")
    adapter: str | None = Field(
        None, description="The adapter as `name@version`; null for a checkpoint."
    )
    job_id: str | None = Field(None, description="Of a checkpoint: the job that wrote it.")
    step: int | None = Field(None, description="Of a checkpoint: optimizer steps done.")
    alias: str | None = Field(None, description="The alias that the request named, if it did.")
    alias_revision: int | None = Field(
        None, description="The move of the alias that was in force when the request came."
    )
    adapter_digest: str | None = Field(None, description="Digest of the tensors on the device.")
    base_model: str
    base_fingerprint: str
    template_digest: str | None = None
    engine: str


class Usage(Sent):
    """Tokens read and written over all rows, those of a comparison included."""

    input_tokens: int
    output_tokens: int


class Embedding(TypedDict):
    """The output of a row of the task `embedding`."""

    embedding: Annotated[
        list[float],
        Field(
            description="Unit length, as wide as the base's hidden states; the cosine of two texts "
            "is the sum of the products."
        ),
    ]


class ComparedAnswer(Sent):
    """What one entry of `compare` answered, in the order of the inputs."""

    adapter_id: str | None = Field(description="The entry as it was sent; null: the plain base.")
    outputs: list[Embedding | Any]
    receipt: Receipt | None = Field(
        None, description="The receipt of all rows, when they share one."
    )
    receipts: list[Receipt] = Field(description="One receipt a row.")


class PredictAnswer(Sent):
    """Outputs in the order of the inputs."""

    object: Literal["prediction"] = "prediction"
    outputs: list[Embedding | Any] = Field(
        examples=[[{"label": "card_arrival", "score": 0.98, "scores": {}}]]
    )
    receipt: Receipt | None = Field(
        None, description="The receipt of all rows, when they share one."
    )
    receipts: list[Receipt] = Field(description="One receipt a row.")
    comparison: list[ComparedAnswer] | None = Field(
        None, description="One entry for each of `compare`, in its order."
    )
    usage: Usage
