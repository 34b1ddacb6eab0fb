"""Answers about base models and the state of the service."""

from typing import Literal

from pydantic import Field

from app.schemas.shared import Sent
from peft_engine.configs import BaseConfig


class ModelAnswer(Sent):
    """A base model on which jobs can train, as published or derived from one.

    Values that only the inference process knows are null while it is down.
    """

    id: str = Field(
        description="The name to use as `base_model`.", examples=["minilm", "minilm@int8"]
    )
    object: Literal["model"] = "model"
    reference: str = Field(description="Where the weights come from.")
    parent: str | None = Field(
        None, description="The base model that this one is derived from; null for one as published."
    )
    base: BaseConfig = Field(
        description="What was done to the parent: what `base` of a job asks for."
    )
    architecture: str | None = Field(None, description="`encoder`, `causal` or `encoder-decoder`.")
    tasks: list[str] | None = Field(None, description="What can be trained on a base of its kind.")
    parameters: int | None = None
    fingerprint: str | None = Field(
        None, description="Digest of the weights, or of the parent's and what was done to them."
    )
    bytes: int | None = Field(None, description="Memory of the weights where they are loaded.")
    precision: str | None = Field(None, description="Arithmetic in which predictions are made.")
    precision_reason: str | None = Field(
        None, description="Why: as the settings say, or what `auto` found on this machine."
    )
    licence: str | None = None
    max_length: int | None = Field(None, description="Longest input in tokens.")
    ready: bool = Field(description="Whether the base answers predictions now.")


class ModelList(Sent):
    """All base models of this service."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]
    has_more: Literal[False] = False
    first_id: str | None = None
    last_id: str | None = None
    inference: Literal["up", "down"] = Field(
        description="`down`: the list comes from the settings alone, predictions answer 503."
    )


class Alive(Sent):
    """The process runs."""

    status: Literal["ok"] = "ok"


class Check(Sent):
    """One thing that the service needs."""

    ok: bool
    reason: str | None = Field(None, description="What is wrong, in a word or two.")


class Readiness(Sent):
    """Whether the service can do all of its work, and which part cannot."""

    status: Literal["ready", "degraded"]
    checks: dict[str, Check] = Field(
        description="`database`, `broker`, `storage`, `inference`.",
        examples=[
            {"database": {"ok": True}, "inference": {"ok": False, "reason": "not reachable"}}
        ],
    )
