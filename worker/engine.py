"""The seam between a trainer child and what trains in it.

``worker.trainer_engine`` fills it with ``peft_engine``; the tests fill it with a twin that counts
steps. Free of torch, so that the twin's child starts fast.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from core.db.draws import Drawn
from peft_engine.compression.watch import UNWATCHED, Watch
from peft_engine.configs import JobSpec, Manifest


class TrainingEvent(Protocol):
    """Something that the training wants known; ``kind`` decides what ``data`` holds."""

    @property
    def kind(self) -> str:
        """One of ``phase``, ``progress``, ``metric``, ``log``, ``resolved``."""

    @property
    def data(self) -> Mapping[str, Any]:
        """JSON values."""


class TrainedDelta(Protocol):
    """A delta as training returns it."""

    @property
    def digest(self) -> str:
        """``sha256:…`` over manifest and tensors."""

    @property
    def manifest(self) -> Manifest:
        """What it is and where it belongs."""

    @property
    def parameters(self) -> int:
        """Number of its values, the head included."""

    @property
    def head_parameters(self) -> int:
        """Number of values of the head alone."""


class TrainingResult(Protocol):
    """What training returns when it is not stopped by an exception."""

    @property
    def outcome(self) -> Literal["succeeded", "cancelled", "paused", "drained"]:
        """How it ended."""

    @property
    def delta(self) -> TrainedDelta | None:
        """The result; None unless it succeeded."""

    @property
    def metrics(self) -> Mapping[str, Any]:
        """``train``, ``validation``, ``test`` with before and after."""

    @property
    def test_draws(self) -> Mapping[str, Drawn]:
        """Metrics of the test split over resamples of its rows, for the gate of an alias."""

    @property
    def validation_draws(self) -> Mapping[str, Drawn]:
        """The same of the validation split, of a job that leaves the test alone."""

    @property
    def resolved(self) -> Mapping[str, Any]:
        """The job's specification with every ``auto`` decided."""

    @property
    def trainable_parameters(self) -> int:
        """Number of weights that were trained."""

    @property
    def base_parameters(self) -> int:
        """Number of weights of the frozen base."""


class Certificate(Protocol):
    """Whether held-out rows get the same answers where the delta will be served."""

    @property
    def passed(self) -> bool:
        """Whether the delta may be published."""

    @property
    def reason(self) -> str | None:
        """Why not, in words."""

    def as_json(self) -> dict[str, Any]:
        """The certificate for the job."""


class Checkpoints(Protocol):
    """Where training keeps what it needs to go on after its process died."""

    def save(self, step: int, state: bytes, delta: TrainedDelta) -> None:
        """Keep state and delta after a step; failing to is noted, never raised."""

    def latest(self) -> tuple[int, bytes, Any | None] | None:
        """Return the newest step whose state and delta can be read, or None when there is none.

        No delta stands beside the state of an earlier version, which holds it.
        """


class LoadedBase(Protocol):
    """A frozen base model in memory, opaque to the worker."""

    @property
    def fingerprint(self) -> str:
        """Digest of weights, shape and tokenizer."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A job that enters training.

    Attributes:
        spec: The job.
        splits: Canonical records.
        control: Asked at every step for the owner's wish.
        emit: Told what happens.
        checkpoints: Where progress is kept.
        parent: What ``load_delta`` returned, for a job that continues from an adapter.
        ended: Given its result, or the error that ended it; does not raise.
    """

    spec: JobSpec
    splits: Mapping[str, Sequence[dict[str, Any]]]
    control: Callable[[], str | None]
    emit: Callable[[TrainingEvent], None]
    checkpoints: Checkpoints
    parent: Any | None
    ended: Callable[[TrainingResult | Exception], None]


class TrainerEngine(Protocol):
    """Loads base models and trains on them; used by one thread."""

    def environment(self) -> dict[str, Any]:
        """Tell what may change the last bits of a result: versions, device, threads, processor."""

    def load_base(self, name: str, precision: str, watch: Watch = UNWATCHED) -> LoadedBase:
        """Load a base model by its name in the settings, and derive from it.

        ``watch`` may end a derivation by raising.

        Raises:
            EngineError: There is no such base, or it cannot be loaded.
        """

    def settle_base(
        self,
        base: Any,
        spec: JobSpec,
        splits: Mapping[str, Sequence[dict[str, Any]]],
        *,
        watch: Watch,
    ) -> JobSpec:
        """Return the job with its ``base`` decided, where its own training rows have a say in that.

        ``base`` is the one as published. Asked only of jobs whose pruning names no rows. ``watch``
        may end it by raising.

        Raises:
            EngineError: Something that the job's owner can mend.
        """

    def train_together(
        self,
        base: Any,
        *,
        arrivals: Callable[[], Sequence[Entry]],
        on_room: Callable[[int], None],
        checkpoint_seconds: float,
    ) -> None:
        """Train jobs, each from its newest checkpoint or from the start, until none is left.

        ``arrivals`` is asked at the start and between steps; jobs that it gives later join those
        that are at work. ``on_room`` is told how many more would do well beside them.
        """

    def estimate(
        self,
        base: Any,
        spec: JobSpec,
        splits: Mapping[str, Sequence[dict[str, Any]]],
        *,
        parent: Any | None,
        check: Callable[[], None],
    ) -> Mapping[str, Any]:
        """Measure what a job would take; nothing of it is left.

        ``check`` may end it by raising.

        Raises:
            EngineError: Something that the owner can mend.
        """

    def report_base(
        self,
        untouched: Any,
        base: Any,
        result: Any,
        splits: Mapping[str, Sequence[dict[str, Any]]],
        *,
        check: Callable[[], None],
    ) -> dict[str, Any] | None:
        """Compare a base as published, a base derived from it, and that with the job's delta.

        None without test rows. ``result`` is what ``train`` returned.
        """

    def load_delta(self, data: bytes) -> TrainedDelta:
        """Return the delta of a file, its digest computed from what was read.

        Raises:
            EngineError: The file is no delta.
        """

    def save_delta(self, delta: Any) -> bytes:
        """Return the file of a delta; equal deltas give equal bytes."""

    def certify(
        self,
        base: Any,
        delta: Any,
        data: bytes,
        splits: Mapping[str, Sequence[dict[str, Any]]],
        *,
        check: Callable[[], None],
    ) -> Certificate:
        """Replay held-out rows through the serving path and compare with the trainer's own.

        Raises:
            EngineError: Something that the job's owner can mend.
        """

    def tidy(self) -> None:
        """Give back memory that the last job left in caches."""
