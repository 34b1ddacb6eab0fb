"""What a job was made of, and what it takes to run it again."""

from typing import Any, Literal

from pydantic import Field

from app.schemas.shared import Sent
from core.states import JobStatus


class SplitManifest(Sent):
    """The records of one split, as training read them."""

    rows: int
    sha256: str = Field(description="Digest of the canonical records.")


class DatasetManifest(Sent):
    """The data set of a job."""

    id: str
    sha256: str | None = Field(None, description="Digest of the bytes as uploaded.")
    splits: dict[str, SplitManifest]
    deleted: bool


class BaseManifest(Sent):
    """The base model of a job."""

    name: str = Field(examples=["minilm", "minilm@int8"])
    fingerprint: str | None = Field(
        None, description="Of the weights that were trained on; null without an adapter."
    )
    template_digest: str | None = None


class AdapterManifest(Sent):
    """An adapter that went into a job, or came out of it."""

    id: str
    adapter: str = Field(examples=["support-intents@3"])
    digest: str = Field(description="Digest of the tensors and the manifest.")
    deleted: bool


class Reproduction(Sent):
    """How a job that repeats another compares with it."""

    job_id: str = Field(description="The job that is repeated.")
    digest: str = Field(description="Of the adapter that it made.")
    same: bool | None = Field(
        None, description="Whether this job's adapter has that digest; null until there is one."
    )


class JobManifest(Sent):
    """Everything that decides what a job makes.

    The same spec on the same records, base and parent gives the same digest on the same kind of
    machine with the same versions.
    """

    object: Literal["job.manifest"] = "job.manifest"
    job_id: str
    status: JobStatus
    spec: dict[str, Any] = Field(
        description="As asked, defaults filled in and `auto` left as it is: `POST /jobs` takes it."
    )
    resolved: dict[str, Any] | None = Field(None, description="What `auto` became.")
    dataset: DatasetManifest
    base: BaseManifest
    parent: AdapterManifest | None = None
    adapter: AdapterManifest | None = None
    environment: dict[str, Any] | None = Field(
        None,
        description="Versions, device, threads and instruction set of the trainer; null until the "
        "job has succeeded, and of jobs made before this was kept.",
        examples=[{"tunery": "0.1.0", "torch": "2.13.0", "device": "cpu", "threads": 2}],
    )
    reproduces: Reproduction | None = None
