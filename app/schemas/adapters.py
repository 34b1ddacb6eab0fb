"""Answers about adapters."""

from typing import Any, Literal

from pydantic import Field

from app.schemas.shared import Moment, Sent


class AdapterAnswer(Sent):
    """A trained adapter. Address it by `id`, `name` (newest version), `name@version` or alias."""

    id: str = Field(examples=["adp_06f1k2m3n4p5q6r7s8t9v0w1x2"])
    object: Literal["adapter"] = "adapter"
    name: str
    version: int
    reference: str = Field(description="`name@version`", examples=["support-intents@3"])
    aliases: list[str] = Field(description="Aliases that point to it now.")
    task: str
    base_model: str
    base_fingerprint: str = Field(description="Digest of the frozen weights it was trained on.")
    template_digest: str | None = None
    methods: list[dict[str, Any]]
    labels: list[str] | None = Field(None, description="Classes in the order of the head.")
    parameters: int = Field(description="Trained numbers, without the head.")
    bytes: int
    digest: str = Field(description="Digest of the tensors and the manifest.")
    metrics: dict[str, Any] | None = None
    certificate: dict[str, Any] | None = None
    metadata: dict[str, str]
    job_id: str | None = Field(
        None, description="The job that trained it; `origin` names the step if it is a checkpoint."
    )
    dataset_id: str | None = None
    parent_adapter_id: str | None = None
    origin: dict[str, Any] | None = Field(
        None,
        description="Of an imported adapter: its `format`, what its files say of themselves, and "
        "`notes` on what was decided for you. Of a published checkpoint: `format: checkpoint`, the "
        "job, the step, and `notes` on what was not looked at.",
    )
    created_at: Moment


class Relative(Sent):
    """An adapter in the lineage of another."""

    adapter_id: str
    adapter: str = Field(description="`name@version`", examples=["support-intents@2"])
    digest: str
    job_id: str | None = Field(None, description="The job that trained it.")
    dataset_id: str | None = Field(None, description="What it was trained on.")
    parent_adapter_id: str | None = Field(None, description="What it was continued from.")
    deleted: bool = Field(description="It has been deleted since; its weights are gone.")
    created_at: Moment


class Lineage(Sent):
    """Where an adapter comes from, and what was made from it."""

    object: Literal["lineage"] = "lineage"
    adapter: Relative
    ancestors: list[Relative] = Field(description="Its parent first, then that one's, 100 at most.")
    ancestors_has_more: bool
    children: list[Relative] = Field(description="Continued from it, newest first, 100 at most.")
    children_has_more: bool
