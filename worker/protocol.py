"""Messages between the supervising task and its trainer child: one JSON object per line.

Two dedicated pipes carry them, so that nothing that a library prints can be taken for a message.
Knows no database, no broker and no torch.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any


class Wish(StrEnum):
    """What the training loop is asked to do at its next step."""

    CANCEL = "cancel"
    PAUSE = "pause"
    DRAIN = "drain"


class Outcome(StrEnum):
    """How an attempt ended, as far as the child can tell."""

    SUCCEEDED = "succeeded"
    CANCELLED = "cancelled"
    PAUSED = "paused"
    DRAINED = "drained"
    FAILED = "failed"
    # Another attempt owns the job: nothing may be written any more.
    FENCED = "fenced"


OBEYED: Mapping[Wish, Outcome] = MappingProxyType(
    {
        Wish.CANCEL: Outcome.CANCELLED,
        Wish.PAUSE: Outcome.PAUSED,
        Wish.DRAIN: Outcome.DRAINED,
    }
)
"""How an attempt ends that does what is wanted of it."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed, in words that the job's owner may read.

    Attributes:
        code: Stable code of the error.
        message: What failed and what to do; never a path or a traceback.
        param: The field of the job that is to blame, if one is.
        retry: True when another attempt may end otherwise.
        outage: True when the next attempt should wait a while: what everybody needs is away.
        fresh_process: True when the child should not run another job (its memory may be damaged).
    """

    code: str
    message: str
    param: str | None = None
    retry: bool = False
    outage: bool = False
    fresh_process: bool = False

    def as_job_error(self) -> dict[str, str | None]:
        """Return the ``error`` object of a job: code, message and param."""
        return {"code": self.code, "message": self.message, "param": self.param}


@dataclass(frozen=True, slots=True)
class Run:
    """Supervisor to child: train this attempt of this job."""

    job_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Measure:
    """Supervisor to child: measure for this attempt of this estimate, between jobs."""

    estimate_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Control:
    """Supervisor to child: a wish about an attempt that is running; others are ignored.

    Attributes:
        job_id: The job, or the estimate.
        attempt: Its attempt.
        wish: What is wanted.
    """

    job_id: str
    attempt: int
    wish: Wish


@dataclass(frozen=True, slots=True)
class Ready:
    """Child to supervisor: libraries are loaded, a job may come."""

    pid: int


@dataclass(frozen=True, slots=True)
class Alive:
    """Child to supervisor: the process lives.

    Attributes:
        ticks: Signs of life of the training thread since the child started (steps, phases,
            logs). A number that stands still while a job runs means that the job hangs.
    """

    ticks: int


@dataclass(frozen=True, slots=True)
class Room:
    """Child to supervisor: how many more jobs on its base would do well beside those that run."""

    jobs: int


@dataclass(frozen=True, slots=True)
class Ended:
    """Child to supervisor: the attempt is over.

    Attributes:
        job_id: The job, or the estimate.
        attempt: Its attempt.
        outcome: How it ended.
        failure: Why it failed.
    """

    job_id: str
    attempt: int
    outcome: Outcome
    failure: Failure | None = None


Message = Run | Measure | Control | Ready | Alive | Room | Ended

_KINDS: Mapping[str, type[Message]] = MappingProxyType(
    {
        "run": Run,
        "measure": Measure,
        "control": Control,
        "ready": Ready,
        "alive": Alive,
        "room": Room,
        "ended": Ended,
    }
)
_NAMES = MappingProxyType({kind: name for name, kind in _KINDS.items()})


def encode(message: Message) -> bytes:
    """Return the line for a message, with its line feed."""
    body = {"type": _NAMES[type(message)], **asdict(message)}
    return json.dumps(body, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message:
    """Return the message on a line.

    Args:
        line: One line as ``encode`` wrote it.

    Returns:
        The message.

    Raises:
        ValueError: The line is not a message; both ends come from one build, so this is a bug.
    """
    body: dict[str, Any] = json.loads(line)
    kind = _KINDS.get(body.pop("type", ""))
    if kind is None:
        raise ValueError(f"not a message of the trainer protocol: {line[:200]!r}")
    if kind is Control:
        body["wish"] = Wish(body["wish"])
    if kind is Ended:
        body["outcome"] = Outcome(body["outcome"])
        body["failure"] = Failure(**body["failure"]) if body["failure"] else None
    return kind(**body)
