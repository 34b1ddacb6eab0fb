"""``/v1/models``."""

from typing import Literal

from pydantic import Field

from app.schemas.shared import Sent


class OwnModelFields(Sent):
    """What a model is, in words of ours."""

    kind: Literal["base", "adapter", "checkpoint"]
    base_model: str = Field(description="The base it acts on; of a base its own name.")
    task: str | None = Field(None, description="What an adapter was trained for; null for a base.")
    tasks: list[str] | None = Field(
        None, description="What a base can be trained for; null while that is not known."
    )
    adapter_id: str | None = Field(None, description="Its id, also of a checkpoint.")
    reference: str | None = Field(None, description="`name@version` that the id means now.")
    job_id: str | None = Field(None, description="Of a checkpoint: the job that wrote it.")
    step: int | None = Field(None, description="Of a checkpoint: optimizer steps done.")
    digest: str | None = Field(
        None, description="Digest of an adapter; fingerprint of a base, once it is loaded."
    )
    ready: bool | None = Field(None, description="Of a base: whether it answers now.")


class ModelCard(Sent):
    """Something that can be named as `model`."""

    id: str = Field(examples=["menu-texts", "menu-texts@2", "smollm2"])
    object: Literal["model"] = "model"
    created: int = Field(description="Unix seconds; 0 for a base, whose age is not known.")
    owned_by: str = Field(description="`tunery` for bases; your tenant for adapters.")
    x_tunery: OwnModelFields


class ModelCards(Sent):
    """Bases, then adapters, newest first."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
    has_more: bool = Field(
        description="Whether there are adapters that are older than the last; `GET /adapters` has "
        "them all, and every one can be asked."
    )
