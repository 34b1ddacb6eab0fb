"""The tables. Queries stand beside this file, one module per resource.

Every row belongs to a tenant, but for tenants themselves and inference processes.
"""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base, BigKey, text_enum
from core.db.clock import now
from core.states import (
    AliasAction,
    BatchStatus,
    DatasetStatus,
    DeliveryStatus,
    EstimateStatus,
    JobStatus,
    Phase,
    SweepStatus,
    UploadStatus,
)

_ID = sa.String(40)
_NAME = sa.String(64)
_DIGEST = sa.String(80)
_BASE_NAME = sa.String(128)
"""``peft_engine.configs.base.MAX_BASE_NAME_CHARS``."""
_SECRET = sa.String(64)


def _id() -> Mapped[str]:
    return mapped_column(_ID, primary_key=True)


def _tenant() -> Mapped[str]:
    return mapped_column(_ID, sa.ForeignKey("tenants.id"))


def _created() -> Mapped[datetime]:
    return mapped_column(default=now())


def _updated() -> Mapped[datetime]:
    return mapped_column(default=now(), onupdate=now())


class Tenant(Base):
    """Owner of everything else."""

    __tablename__ = "tenants"

    id: Mapped[str] = _id()
    name: Mapped[str] = mapped_column(_NAME, unique=True)
    created_at: Mapped[datetime] = _created()


class ApiKey(Base):
    """A key, known only by its hash."""

    __tablename__ = "api_keys"
    __table_args__ = (sa.Index(None, "tenant_id", "id"),)

    id: Mapped[str] = _id()
    tenant_id: Mapped[str] = _tenant()
    name: Mapped[str] = mapped_column(_NAME)
    prefix: Mapped[str] = mapped_column(sa.String(16))
    """First characters of the key, to recognise it by."""
    hash: Mapped[str] = mapped_column(sa.String(64), unique=True)
    """SHA-256 in hex; the key itself has 256 random bits, so a slow hash adds nothing."""
    scopes: Mapped[list[str]]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = _created()


class Dataset(Base):
    """Validated records; the rows themselves are objects in storage."""

    __tablename__ = "datasets"
    __table_args__ = (
        sa.UniqueConstraint("tenant_id", "idempotency_key"),
        sa.Index(None, "tenant_id", "id"),
        sa.Index(None, "tenant_id", "request_digest"),
        sa.Index(None, "status", "updated_at"),
    )

    id: Mapped[str] = _id()
    tenant_id: Mapped[str] = _tenant()
    name: Mapped[str] = mapped_column(_NAME)
    task: Mapped[str | None] = mapped_column(_NAME)
    """None until recognised."""
    status: Mapped[DatasetStatus] = mapped_column(text_enum(DatasetStatus, name="status"))
    reason: Mapped[str | None] = mapped_column(sa.Text)
    format: Mapped[str | None] = mapped_column(sa.String(20))
    filename: Mapped[str | None] = mapped_column(sa.String(255))
    bytes: Mapped[int | None] = mapped_column(sa.BigInteger)
    rows: Mapped[int | None] = mapped_column(sa.BigInteger)
    sha256: Mapped[str | None] = mapped_column(sa.String(64))
    """Of the bytes as uploaded."""
    request: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What was asked: task, format, mapping, split, and the storage keys of the uploads."""
    splits: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """``{split: {key, rows, sha256}}`` of the canonical JSONL objects."""
    report: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    idempotency_key: Mapped[str | None] = mapped_column(sa.String(255))
    request_digest: Mapped[str | None] = mapped_column(_DIGEST)
    created_at: Mapped[datetime] = _created()
    updated_at: Mapped[datetime] = _updated()
    deleted_at: Mapped[datetime | None]


class Upload(Base):
    """A file that comes in parts, until they are joined."""

    __tablename__ = "uploads"
    __table_args__ = (
        sa.Index(None, "tenant_id", "status"),
        sa.Index(None, "status", "expires_at"),
    )

    id: Mapped[str] = _id()
    tenant_id: Mapped[str] = _tenant()
    filename: Mapped[str] = mapped_column(sa.String(255))
    purpose: Mapped[str] = mapped_column(_NAME)
    bytes: Mapped[int] = mapped_column(sa.BigInteger)
    """As announced; the parts that are joined must have as many."""
    status: Mapped[UploadStatus] = mapped_column(text_enum(UploadStatus, name="status"))
    part_ids: Mapped[list[str] | None]
    """In the order in which they were joined; None until then."""
    file_id: Mapped[str | None] = mapped_column(_ID)
    """What they became; no foreign key, since the purpose decides in which table it stands."""
    created_at: Mapped[datetime] = _created()
    expires_at: Mapped[datetime]


class UploadPart(Base):
    """Bytes of an upload in storage; the row goes when nothing needs them any more."""

    __tablename__ = "upload_parts"
    __table_args__ = (sa.Index(None, "upload_id"),)

    id: Mapped[str] = _id()
    upload_id: Mapped[str] = mapped_column(_ID, sa.ForeignKey("uploads.id"))
    tenant_id: Mapped[str] = _tenant()
    bytes: Mapped[int] = mapped_column(sa.BigInteger)
    created_at: Mapped[datetime] = _created()


class Job(Base):
    """One wish to train; ``attempt`` fences its writers."""

    __tablename__ = "jobs"
    __table_args__ = (
        sa.UniqueConstraint("tenant_id", "idempotency_key"),
        sa.CheckConstraint("control IN ('cancel', 'pause')", name="control"),
        sa.Index(None, "tenant_id", "id"),
        sa.Index(None, "tenant_id", "request_digest"),
        sa.Index(None, "dataset_id"),
        sa.Index(None, "sweep_id"),
        sa.Index(None, "status", "lease_until"),
        sa.Index(None, "status", "sent_at"),
    )

    id: Mapped[str] = _id()
    tenant_id: Mapped[str] = _tenant()
    dataset_id: Mapped[str] = mapped_column(_ID, sa.ForeignKey("datasets.id"))
    base_model: Mapped[str] = mapped_column(_BASE_NAME)
    task: Mapped[str | None] = mapped_column(_NAME)
    adapter_name: Mapped[str | None] = mapped_column(_NAME)
    status: Mapped[JobStatus] = mapped_column(text_enum(JobStatus, name="status"))
    phase: Mapped[Phase | None] = mapped_column(text_enum(Phase, name="phase"))
    reason: Mapped[str | None] = mapped_column(sa.Text)
    spec: Mapped[dict[str, Any]]
    """As asked, defaults filled in."""
    resolved: Mapped[dict[str, Any] | None]
    """As trained: every ``auto`` replaced."""
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata", default=dict)
    priority: Mapped[int] = mapped_column(default=0)
    """Lower runs sooner."""
    control: Mapped[str | None] = mapped_column(sa.String(10))
    """A wish the trainer has not obeyed yet: ``cancel`` or ``pause``."""
    attempt: Mapped[int] = mapped_column(default=0)
    max_attempts: Mapped[int]
    """Raised by one whenever an attempt ends in order (drain, pause): only losses count."""
    owner: Mapped[str | None] = mapped_column(sa.String(255))
    lease_until: Mapped[datetime | None]
    sent_at: Mapped[datetime | None]
    """When the last message for this queued job went out; None: none did."""
    sends: Mapped[int] = mapped_column(default=0)
    """Messages sent since the job was last queued; spaces out the next one."""
    progress: Mapped[dict[str, Any] | None]
    metrics: Mapped[dict[str, Any] | None]
    certificate: Mapped[dict[str, Any] | None]
    trainable_parameters: Mapped[int | None] = mapped_column(sa.BigInteger)
    base_parameters: Mapped[int | None] = mapped_column(sa.BigInteger)
    adapter_id: Mapped[str | None] = mapped_column(_ID)
    """No foreign key: the adapter's row points here already, and a circle has no order."""
    environment: Mapped[dict[str, Any] | None]
    """Versions and machine that trained it."""
    reproduces_job_id: Mapped[str | None] = mapped_column(_ID)
    """The job of the same tenant that it was made to repeat; no foreign key, which SQLite adds to
    no table that is there."""
    sweep_id: Mapped[str | None] = mapped_column(_ID)
    """The sweep of the same tenant that made it; no foreign key, for the same reason."""
    error: Mapped[dict[str, Any] | None]
    idempotency_key: Mapped[str | None] = mapped_column(sa.String(255))
    request_digest: Mapped[str | None] = mapped_column(_DIGEST)
    created_at: Mapped[datetime] = _created()
    updated_at: Mapped[datetime] = _updated()
    started_at: Mapped[datetime | None]
    first_step_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Sweep(Base):
    """A search over the fields of a job; what it has found out stands in its jobs."""

    __tablename__ = "sweeps"
    __table_args__ = (
        sa.UniqueConstraint("tenant_id", "idempotency_key"),
        sa.Index(None, "tenant_id", "id"),
        sa.Index(None, "tenant_id", "request_digest"),
        sa.Index(None, "dataset_id"),
        sa.Index(None, "status", "sent_at"),
    )

    id: Mapped[str] = _id()
    tenant_id: Mapped[str] = _tenant()
    dataset_id: Mapped[str] = mapped_column(_ID, sa.ForeignKey("datasets.id"))
    name: Mapped[str] = mapped_column(_NAME)
    status: Mapped[SweepStatus] = mapped_column(text_enum(SweepStatus, name="status"))
    spec: Mapped[dict[str, Any]]
    """``peft_engine.configs.SweepSpec``, its references decided."""
    version: Mapped[int] = mapped_column(default=0)
    """Raised by whoever changes it: what was decided on an older one is decided anew."""
    settled: Mapped[int] = mapped_column(default=-1)
    """How many of its jobs had ended when it was last gone on with; -1: it waits to be."""
    sent_at: Mapped[datetime] = mapped_column(default=now())
    """When the last message for it went out."""
    best_job_id: Mapped[str | None] = mapped_column(_ID)
    test_job_id: Mapped[str | None] = mapped_column(_ID)
    """The best trial once more, with the test."""
    comparison: Mapped[dict[str, Any] | None]
    """How clearly the best trial is the best."""
    error: Mapped[dict[str, Any] | None]
    idempotency_key: Mapped[str | None] = mapped_column(sa.String(255))
    request_digest: Mapped[str | None] = mapped_column(_DIGEST)
    created_at: Mapped[datetime] = _created()
    updated_at: Mapped[datetime] = _updated()
    finished_at: Mapped[datetime | None]


class SweepTrial(Base):
    """One point of a sweep; its number is made once, whoever makes it."""

    __tablename__ = "sweep_trials"
    __table_args__ = (sa.UniqueConstraint("job_id"),)

    sweep_id: Mapped[str] = mapped_column(_ID, sa.ForeignKey("sweeps.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant_id: Mapped[str] = _tenant()
    params: Mapped[dict[str, Any]]
    """Value by path of the field."""
    job_id: Mapped[str | None] = mapped_column(_ID, sa.ForeignKey("jobs.id"))
    """None: the values go together in no job; ``error`` says why."""
    error: Mapped[dict[str, Any] | None]


class ValidationDraw(Base):
    """The deciding metric over resamples of the validation split, of a job without a test."""

    __tablename__ = "validation_draws"

    job_id: Mapped[str] = mapped_column(_ID, sa.ForeignKey("jobs.id"), primary_key=True)
    metric: Mapped[str] = mapped_column(_NAME, primary_key=True)
    tenant_id: Mapped[str] = _tenant()
    rows: Mapped[int]
    """How many were drawn from."""
    pairing: Mapped[str] = mapped_column(_DIGEST)
    """Digest of the resamples."""
    draws: Mapped[bytes]
    """Little-endian doubles, one a resample."""


class Estimate(Base):
    """One wish to know what a job would take; ``attempt`` fences its writers as a job's does."""

    __tablename__ = "estimates"
    __table_args__ = (
        sa.CheckConstraint("control IN ('cancel')", name="control"),
        sa.Index(None, "tenant_id", "id"),
        sa.Index(None, "job_id"),
        sa.Index(None, "status", "id"),
    )

    id: Mapped[str] = _id()
    tenant_id: Mapped[str] = _tenant()
    dataset_id: Mapped[str] = mapped_column(_ID, sa.ForeignKey("datasets.id"))
    job_id: Mapped[str | None] = mapped_column(_ID, sa.ForeignKey("jobs.id"))
    """The job that waits for its start, if it was made with one."""
    spec: Mapped[dict[str, Any]]
    """As asked, defaults filled in."""
    status: Mapped[EstimateStatus] = mapped_column(text_enum(EstimateStatus, name="status"))
    reason: Mapped[str | None] = mapped_column(sa.Text)
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    control: Mapped[str | None] = mapped_column(sa.String(10))
    """``cancel``, which the trainer has not obeyed yet."""
    attempt: Mapped[int] = mapped_column(default=0)
    losses: Mapped[int] = mapped_column(default=0)
    """Attempts that ended without a word of theirs."""
    owner: Mapped[str | None] = mapped_column(sa.String(255))
    lease_until: Mapped[datetime | None]
    sent_at: Mapped[datetime | None]
    """When the last message for it went out; None: none did."""
    sends: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime] = _created()
    updated_at: Mapped[datetime] = _updated()
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class JobEvent(Base):
    """One line of a job's story; ``seq`` only grows."""

    __tablename__ = "job_events"
    __table_args__ = (sa.Index(None, "job_id", "seq"), {"sqlite_autoincrement": True})

    seq: Mapped[int] = mapped_column(BigKey, primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(_ID, sa.ForeignKey("jobs.id"))
    tenant_id: Mapped[str] = _tenant()
    attempt: Mapped[int]
    event: Mapped[str] = mapped_column(sa.String(20))
    level: Mapped[str] = mapped_column(sa.String(10), default="info")
    message: Mapped[str] = mapped_column(sa.Text)
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime] = _created()


class JobMetric(Base):
    """One point of one curve; a repeated step overwrites, so that a resumed job has one curve."""

    __tablename__ = "job_metrics"

    job_id: Mapped[str] = mapped_column(_ID, sa.ForeignKey("jobs.id"), primary_key=True)
    name: Mapped[str] = mapped_column(_NAME, primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant_id: Mapped[str] = _tenant()
    value: Mapped[float | None] = mapped_column(sa.Double)
    """None for a value that is not finite."""
    attempt: Mapped[int]
    created_at: Mapped[datetime] = _created()


class Checkpoint(Base):
    """A checkpoint whose bytes are in storage."""

    __tablename__ = "checkpoints"
    __table_args__ = (
        sa.UniqueConstraint("job_id", "attempt", "step"),
        sa.Index(None, "delta_key"),
    )

    id: Mapped[str] = _id()
    job_id: Mapped[str] = mapped_column(_ID, sa.ForeignKey("jobs.id"))
    tenant_id: Mapped[str] = _tenant()
    attempt: Mapped[int]
    step: Mapped[int]
    key: Mapped[str] = mapped_column(sa.String(255))
    """Of the state, which only training reads."""
    bytes: Mapped[int] = mapped_column(sa.BigInteger)
    """Of the state alone."""
    sha256: Mapped[str] = mapped_column(sa.String(64))
    delta_key: Mapped[str | None] = mapped_column(sa.String(255))
    """Of the delta, which can be served; an equal delta of an adapter is the same object. None: an
    earlier version wrote the checkpoint, and the state holds the delta."""
    delta: Mapped[dict[str, Any] | None]
    """What the row of an adapter would say of the delta, by the names of its columns."""
    created_at: Mapped[datetime] = _created()


class Adapter(Base):
    """A published delta; immutable but for ``deleted_at``."""

    __tablename__ = "adapters"
    __table_args__ = (
        sa.UniqueConstraint("tenant_id", "name", "version"),
        sa.Index(None, "tenant_id", "idempotency_key", unique=True),
        sa.Index(None, "tenant_id", "request_digest"),
        # one job publishes once, whatever its attempts do
        sa.UniqueConstraint("job_id"),
        sa.Index(None, "tenant_id", "id"),
        sa.Index(None, "key"),
        sa.Index(None, "parent_adapter_id"),
    )

    id: Mapped[str] = _id()
    tenant_id: Mapped[str] = _tenant()
    name: Mapped[str] = mapped_column(_NAME)
    version: Mapped[int]
    job_id: Mapped[str | None] = mapped_column(_ID, sa.ForeignKey("jobs.id"))
    dataset_id: Mapped[str | None] = mapped_column(_ID, sa.ForeignKey("datasets.id"))
    parent_adapter_id: Mapped[str | None] = mapped_column(_ID, sa.ForeignKey("adapters.id"))
    base_model: Mapped[str] = mapped_column(_BASE_NAME)
    base_fingerprint: Mapped[str] = mapped_column(_DIGEST)
    task: Mapped[str] = mapped_column(_NAME)
    methods: Mapped[list[Any]]
    labels: Mapped[list[Any] | None]
    parameters: Mapped[int] = mapped_column(sa.BigInteger)
    bytes: Mapped[int] = mapped_column(sa.BigInteger)
    digest: Mapped[str] = mapped_column(_DIGEST)
    key: Mapped[str] = mapped_column(sa.String(255))
    """Where the delta lies in storage; the same digest of several tenants is one object."""
    template_digest: Mapped[str | None] = mapped_column(_DIGEST)
    metrics: Mapped[dict[str, Any] | None]
    certificate: Mapped[dict[str, Any] | None]
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata", default=dict)
    origin: Mapped[dict[str, Any] | None]
    """Of an adapter that no job has ended with: brought along, merged, or a checkpoint. Its format,
    where it comes from, and what was decided on the way."""
    idempotency_key: Mapped[str | None] = mapped_column(sa.String(255))
    request_digest: Mapped[str | None] = mapped_column(_DIGEST)
    created_at: Mapped[datetime] = _created()
    deleted_at: Mapped[datetime | None]


class Alias(Base):
    """A name that points to an adapter, until it is moved."""

    __tablename__ = "aliases"
    __table_args__ = (
        sa.UniqueConstraint("tenant_id", "name"),
        sa.Index(None, "adapter_id"),
    )

    id: Mapped[str] = _id()
    tenant_id: Mapped[str] = _tenant()
    name: Mapped[str] = mapped_column(_NAME)
    adapter_id: Mapped[str] = mapped_column(_ID, sa.ForeignKey("adapters.id"))
    revision: Mapped[int]
    """Number of the move that brought it where it points."""
    created_at: Mapped[datetime] = _created()
    updated_at: Mapped[datetime] = _updated()


class AliasMove(Base):
    """One move of an alias; never changed, and kept when the alias is deleted."""

    __tablename__ = "alias_moves"

    tenant_id: Mapped[str] = mapped_column(_ID, sa.ForeignKey("tenants.id"), primary_key=True)
    name: Mapped[str] = mapped_column(_NAME, primary_key=True)
    revision: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """1, 2, … for a name, also across its deletion."""
    action: Mapped[AliasAction] = mapped_column(text_enum(AliasAction, name="action"))
    adapter_id: Mapped[str | None] = mapped_column(_ID, sa.ForeignKey("adapters.id"))
    """None: the alias was deleted."""
    previous_adapter_id: Mapped[str | None] = mapped_column(_ID, sa.ForeignKey("adapters.id"))
    restored_revision: Mapped[int | None]
    """The revision that a rollback went back to."""
    gate: Mapped[dict[str, Any] | None]
    """What the gate found, when one was asked for."""
    created_at: Mapped[datetime] = _created()


class MetricDraw(Base):
    """One metric of an adapter over resamples of its test split."""

    __tablename__ = "metric_draws"

    adapter_id: Mapped[str] = mapped_column(_ID, sa.ForeignKey("adapters.id"), primary_key=True)
    metric: Mapped[str] = mapped_column(_NAME, primary_key=True)
    tenant_id: Mapped[str] = _tenant()
    test_sha256: Mapped[str] = mapped_column(sa.String(64))
    """Of the test split's records."""
    rows: Mapped[int]
    """How many of them were drawn from."""
    max_length: Mapped[int]
    """Tokens after which a row was cut."""
    pairing: Mapped[str] = mapped_column(_DIGEST)
    """Digest of the resamples."""
    value: Mapped[float] = mapped_column(sa.Double)
    lower_is_better: Mapped[bool]
    deciding: Mapped[bool]
    """Whether the best step was chosen by this metric."""
    draws: Mapped[bytes]
    """Little-endian doubles, one a resample."""


class WebhookEndpoint(Base):
    """An address that a tenant wants to be told at."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (sa.Index(None, "tenant_id", "id"),)

    id: Mapped[str] = _id()
    tenant_id: Mapped[str] = _tenant()
    name: Mapped[str] = mapped_column(_NAME)
    url: Mapped[str] = mapped_column(sa.Text)
    event_types: Mapped[list[str]]
    secret: Mapped[str] = mapped_column(_SECRET)
    """As it was shown: whoever signs needs the secret itself, a hash would not do."""
    previous_secret: Mapped[str | None] = mapped_column(_SECRET)
    """Signs beside the new one for a while after a rotation."""
    previous_secret_until: Mapped[datetime | None]
    may_be_private: Mapped[bool]
    """Whether the api that took the address allowed private ones; a worker must allow them too."""
    disabled_reason: Mapped[str | None] = mapped_column(sa.Text)
    """Why nothing is sent any more; None: it is."""
    delivered: Mapped[int] = mapped_column(sa.BigInteger, default=0)
    """Deliveries that were taken; only grows, also when their rows are forgotten."""
    failed: Mapped[int] = mapped_column(sa.BigInteger, default=0)
    """The same of those that were given up."""
    created_at: Mapped[datetime] = _created()
    updated_at: Mapped[datetime] = mapped_column(default=now())
    """Of what its owner set; counting does not move it."""
    deleted_at: Mapped[datetime | None]


class WebhookEvent(Base):
    """Something that happened and that an endpoint is to be told; written with what it tells of."""

    __tablename__ = "webhook_events"
    __table_args__ = (sa.Index(None, "created_at"),)

    id: Mapped[str] = _id()
    tenant_id: Mapped[str] = _tenant()
    type: Mapped[str] = mapped_column(_NAME)
    """``core.states.WebhookEventType``; no check, since later versions add some."""
    object_id: Mapped[str] = mapped_column(_ID)
    """The job or batch, as ``/v1`` knows it."""
    created_at: Mapped[datetime] = _created()


class WebhookDelivery(Base):
    """One event on its way to one endpoint; ``attempts`` fences who sends it."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        sa.Index(None, "status", "due_at"),
        sa.Index(None, "endpoint_id", "id"),
        sa.Index(None, "event_id"),
        sa.Index(None, "created_at"),
    )

    id: Mapped[str] = _id()
    tenant_id: Mapped[str] = _tenant()
    event_id: Mapped[str] = mapped_column(_ID, sa.ForeignKey("webhook_events.id"))
    endpoint_id: Mapped[str] = mapped_column(_ID, sa.ForeignKey("webhook_endpoints.id"))
    status: Mapped[DeliveryStatus] = mapped_column(text_enum(DeliveryStatus, name="status"))
    attempts: Mapped[int] = mapped_column(default=0)
    due_at: Mapped[datetime | None]
    """When it is to be sent; while it is being sent, when it is taken for lost. None: it ended."""
    attempted_at: Mapped[datetime | None]
    status_code: Mapped[int | None]
    """HTTP status of the last answer; None when there was none."""
    error: Mapped[str | None] = mapped_column(sa.Text)
    """What was wrong with the last attempt, for people."""
    created_at: Mapped[datetime] = _created()


class File(Base):
    """Bytes that are kept as they came: the requests of a batch, and their answers."""

    __tablename__ = "files"
    __table_args__ = (
        sa.UniqueConstraint("tenant_id", "idempotency_key"),
        sa.Index(None, "tenant_id", "id"),
        sa.Index(None, "tenant_id", "request_digest"),
    )

    id: Mapped[str] = _id()
    tenant_id: Mapped[str] = _tenant()
    purpose: Mapped[str] = mapped_column(sa.String(20))
    """``batch`` or ``batch_output``."""
    filename: Mapped[str] = mapped_column(sa.String(255))
    bytes: Mapped[int] = mapped_column(sa.BigInteger)
    sha256: Mapped[str] = mapped_column(sa.String(64))
    key: Mapped[str] = mapped_column(sa.String(255))
    """Where the bytes lie in storage."""
    idempotency_key: Mapped[str | None] = mapped_column(sa.String(255))
    request_digest: Mapped[str | None] = mapped_column(_DIGEST)
    created_at: Mapped[datetime] = _created()
    deleted_at: Mapped[datetime | None]


class Batch(Base):
    """Requests of one file, answered one by one; ``attempt`` fences its writers."""

    __tablename__ = "batches"
    __table_args__ = (
        sa.UniqueConstraint("tenant_id", "idempotency_key"),
        sa.Index(None, "tenant_id", "id"),
        sa.Index(None, "tenant_id", "request_digest"),
        sa.Index(None, "input_file_id"),
        sa.Index(None, "status", "lease_until"),
    )

    id: Mapped[str] = _id()
    tenant_id: Mapped[str] = _tenant()
    endpoint: Mapped[str] = mapped_column(_NAME)
    """Path that every request goes to."""
    input_file_id: Mapped[str] = mapped_column(_ID, sa.ForeignKey("files.id"))
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    status: Mapped[BatchStatus] = mapped_column(text_enum(BatchStatus, name="status"))
    errors: Mapped[dict[str, Any] | None]
    """``{data: [{code, line, message, param}], total}``: why it failed."""
    output_file_id: Mapped[str | None] = mapped_column(_ID, sa.ForeignKey("files.id"))
    error_file_id: Mapped[str | None] = mapped_column(_ID, sa.ForeignKey("files.id"))
    requests: Mapped[int] = mapped_column(default=0)
    """How many there are; 0 until they are validated."""
    kept: Mapped[int] = mapped_column(default=0)
    """How many of them, from the first on, have their answer in a part."""
    completed: Mapped[int] = mapped_column(default=0)
    failed: Mapped[int] = mapped_column(default=0)
    attempt: Mapped[int] = mapped_column(default=0)
    losses: Mapped[int] = mapped_column(default=0)
    """Attempts since the last part was kept that did not end in order."""
    owner: Mapped[str | None] = mapped_column(sa.String(255))
    lease_until: Mapped[datetime | None]
    """None: nobody has it."""
    idempotency_key: Mapped[str | None] = mapped_column(sa.String(255))
    request_digest: Mapped[str | None] = mapped_column(_DIGEST)
    created_at: Mapped[datetime] = _created()
    expires_at: Mapped[datetime]
    in_progress_at: Mapped[datetime | None]
    finalizing_at: Mapped[datetime | None]
    cancelling_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    failed_at: Mapped[datetime | None]
    expired_at: Mapped[datetime | None]
    cancelled_at: Mapped[datetime | None]


class BatchPart(Base):
    """Answers that a batch which has not ended already has; one object in storage."""

    __tablename__ = "batch_parts"
    __table_args__ = (sa.Index(None, "key"),)

    batch_id: Mapped[str] = mapped_column(_ID, sa.ForeignKey("batches.id"), primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(10), primary_key=True)
    """``output`` or ``error``: of which file it is a part."""
    first: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """Place, from 0, of the first request that was answered with it; parts are joined in order."""
    tenant_id: Mapped[str] = _tenant()
    key: Mapped[str] = mapped_column(sa.String(255))


class InferenceNode(Base):
    """An inference process that announced itself; it is alive while ``seen_at`` is fresh."""

    __tablename__ = "inference_nodes"

    id: Mapped[str] = _id()
    url: Mapped[str] = mapped_column(sa.String(255))
    bases: Mapped[list[Any]]
    device: Mapped[str] = mapped_column(_NAME)
    precision: Mapped[dict[str, Any]] = mapped_column(default=dict)
    status: Mapped[str] = mapped_column(sa.String(20))
    started_at: Mapped[datetime] = mapped_column(default=now())
    seen_at: Mapped[datetime] = mapped_column(default=now())
