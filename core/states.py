"""States of jobs, data sets, batches and deliveries, and the tables of allowed moves.

Knows no database and no HTTP. The diagrams in ``docs/states.md`` are generated from ``TRANSITIONS``
and ``BATCH_TRANSITIONS`` (``python -m core.states``) and compared in a test.
"""

import sys
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from core.errors import InvalidTransition


class JobStatus(StrEnum):
    """What a job is; ``phase`` says what it is doing and ``reason`` why it waits."""

    VALIDATING_FILES = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class EstimateStatus(StrEnum):
    """What an estimate is: a short measurement that waits its turn as a job does."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ESTIMATE_ENDS = frozenset(
    {EstimateStatus.SUCCEEDED, EstimateStatus.FAILED, EstimateStatus.CANCELLED}
)
"""States in which an estimate is over; none is left again."""


class DatasetStatus(StrEnum):
    """``ready`` is the only state in which a job may use the data set."""

    VALIDATING = "validating"
    READY = "ready"
    INVALID = "invalid"


class UploadStatus(StrEnum):
    """What an upload in parts is; only a ``pending`` one takes parts and can be completed."""

    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class BatchStatus(StrEnum):
    """What a batch is, in the words of OpenAI."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class SweepStatus(StrEnum):
    """What a sweep is; those before ``succeeded`` go on by themselves."""

    RUNNING = "running"
    TESTING = "testing"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Phase(StrEnum):
    """What a running job is doing, in the usual order."""

    LOADING = "loading"
    TOKENIZING = "tokenizing"
    TRAINING = "training"
    EVALUATING = "evaluating"
    CERTIFYING = "certifying"
    PUBLISHING = "publishing"


class AliasAction(StrEnum):
    """How an alias came to point where it points."""

    SET = "set"
    ROLLBACK = "rollback"
    DELETE = "delete"


class WebhookEventType(StrEnum):
    """What a webhook endpoint can be told of; a job's or a batch's last state."""

    JOB_SUCCEEDED = "fine_tuning.job.succeeded"
    JOB_FAILED = "fine_tuning.job.failed"
    JOB_CANCELLED = "fine_tuning.job.cancelled"
    BATCH_COMPLETED = "batch.completed"
    BATCH_FAILED = "batch.failed"
    BATCH_CANCELLED = "batch.cancelled"
    BATCH_EXPIRED = "batch.expired"


class DeliveryStatus(StrEnum):
    """What became of an event on its way to an endpoint; ``pending`` is sent, or sent again."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


WAITS_FOR_START = "waits for POST /jobs/{id}:start"
"""The reason of a paused job that was made with ``auto_start: false`` and not started yet; shown to
its user, so it says what to do."""

_S = JobStatus

TRANSITIONS: Mapping[JobStatus, frozenset[JobStatus]] = MappingProxyType(
    {
        _S.VALIDATING_FILES: frozenset({_S.QUEUED, _S.PAUSED, _S.FAILED, _S.CANCELLED}),
        _S.QUEUED: frozenset({_S.RUNNING, _S.PAUSED, _S.FAILED, _S.CANCELLED}),
        _S.RUNNING: frozenset(
            # queued: a drain or an expired lease hands the job to another attempt
            {_S.QUEUED, _S.PAUSING, _S.CANCELLING, _S.SUCCEEDED, _S.FAILED}
        ),
        _S.PAUSING: frozenset({_S.PAUSED, _S.CANCELLING, _S.SUCCEEDED, _S.FAILED}),
        _S.PAUSED: frozenset({_S.QUEUED, _S.CANCELLED}),
        # succeeded: the last step was over before the wish to cancel was read
        _S.CANCELLING: frozenset({_S.CANCELLED, _S.SUCCEEDED, _S.FAILED}),
        _S.SUCCEEDED: frozenset(),
        _S.FAILED: frozenset({_S.QUEUED}),
        _S.CANCELLED: frozenset(),
    }
)

TERMINAL = frozenset({_S.SUCCEEDED, _S.FAILED, _S.CANCELLED})
"""States in which a job has ended; only a failed one can be retried."""

SWEEP_ACTIVE = frozenset({SweepStatus.RUNNING, SweepStatus.TESTING, SweepStatus.CANCELLING})
"""States in which a sweep has not ended."""

ACTIVE = frozenset({_S.RUNNING, _S.PAUSING, _S.CANCELLING})
"""States in which a worker holds a lease on the job."""

_B = BatchStatus

BATCH_TRANSITIONS: Mapping[BatchStatus, frozenset[BatchStatus]] = MappingProxyType(
    {
        _B.VALIDATING: frozenset({_B.IN_PROGRESS, _B.CANCELLING, _B.EXPIRED, _B.FAILED}),
        # failed: the processes that ran it were lost too often
        _B.IN_PROGRESS: frozenset({_B.FINALIZING, _B.CANCELLING, _B.EXPIRED, _B.FAILED}),
        _B.FINALIZING: frozenset({_B.COMPLETED, _B.CANCELLING, _B.FAILED}),
        _B.CANCELLING: frozenset({_B.CANCELLED}),
        _B.COMPLETED: frozenset(),
        _B.FAILED: frozenset(),
        _B.EXPIRED: frozenset(),
        _B.CANCELLED: frozenset(),
    }
)

BATCH_ENDED = frozenset(status for status, after in BATCH_TRANSITIONS.items() if not after)
"""States in which a batch has ended; in every other a process of batches is wanted."""

_LABELS: Mapping[tuple[JobStatus, JobStatus], str] = MappingProxyType(
    {
        (_S.VALIDATING_FILES, _S.QUEUED): "data set ready",
        (_S.VALIDATING_FILES, _S.PAUSED): "data set ready, to be started",
        (_S.VALIDATING_FILES, _S.FAILED): "data set invalid",
        (_S.QUEUED, _S.RUNNING): "claim",
        (_S.QUEUED, _S.FAILED): "too many attempts",
        (_S.RUNNING, _S.QUEUED): "drain, crash or lost worker",
        (_S.RUNNING, _S.PAUSING): "pause",
        (_S.RUNNING, _S.CANCELLING): "cancel",
        (_S.PAUSED, _S.QUEUED): "resume, start",
        (_S.FAILED, _S.QUEUED): "retry",
    }
)


def check_transition(old: JobStatus, new: JobStatus) -> None:
    """Refuse a move that the table does not allow.

    Args:
        old: The state that the row has.
        new: The state that is asked for; equal to ``old`` is allowed and means nothing.

    Raises:
        InvalidTransition: The move is not in the table.
    """
    if old != new and new not in TRANSITIONS[old]:
        raise InvalidTransition(f"a job that is {old} cannot become {new}")


def render_state_diagram() -> str:
    """Write ``docs/states.md``.

    Returns:
        The whole page in Markdown, ending in a newline.
    """
    arrows = [
        f"    {old} --> {new}" + (f": {_LABELS[old, new]}" if (old, new) in _LABELS else "")
        for old, targets in TRANSITIONS.items()
        for new in JobStatus
        if new in targets
    ]
    batch_arrows = [
        f"    {old} --> {new}"
        for old, targets in BATCH_TRANSITIONS.items()
        for new in BatchStatus
        if new in targets
    ]
    starts = (JobStatus.VALIDATING_FILES, JobStatus.QUEUED, JobStatus.PAUSED)
    return "\n".join(
        [
            "# States of a job",
            "",
            "<!-- Generated: python -m core.states > docs/states.md -->",
            "",
            "`phase` says what a running job is doing, `reason` why one waits. Every change of",
            "status is an event of the job, written in the same transaction.",
            "",
            "```mermaid",
            "stateDiagram-v2",
            *(f"    [*] --> {status}" for status in starts),
            *arrows,
            *(f"    {status} --> [*]" for status in JobStatus if status in TERMINAL),
            "```",
            "",
            "# States of a batch",
            "",
            "```mermaid",
            "stateDiagram-v2",
            f"    [*] --> {BatchStatus.VALIDATING}",
            *batch_arrows,
            *(f"    {status} --> [*]" for status in BatchStatus if status in BATCH_ENDED),
            "```",
            "",
        ]
    )


if __name__ == "__main__":
    sys.stdout.write(render_state_diagram())
