"""What training tells and asks of the outside: events, wishes to stop, checkpoints, the result.

The training loop knows no database, no broker and no files; it knows these.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from peft_engine.delta import Delta
from peft_engine.training.draws import MetricDraws

EventKind = Literal["phase", "resolved", "progress", "metric", "log"]
Wish = Literal["cancel", "pause", "drain"]
Outcome = Literal["succeeded", "cancelled", "paused", "drained"]

Control = Callable[[], Wish | None]
"""Asked at every step and during evaluations; None means go on."""


class Interrupted(Exception):
    """A wish to stop was read in the middle of a phase; never leaves the engine.

    Args:
        wish: What is wanted.
    """

    def __init__(self, wish: Wish) -> None:
        super().__init__(wish)
        self.wish = wish


@dataclass(frozen=True)
class TrainingEvent:
    """Something worth telling.

    Attributes:
        kind: ``phase`` {phase}, ``resolved`` {…}, ``progress`` {step, total_steps, …},
            ``metric`` {name, step, value}, ``log`` {level, message}.
        data: JSON values.
    """

    kind: EventKind
    data: Mapping[str, Any]


Emit = Callable[[TrainingEvent], None]


class Checkpoints(Protocol):
    """Where a job's progress is kept."""

    def save(self, step: int, state: bytes, delta: Delta) -> None:
        """Keep a checkpoint; a failure is the outside's to report, training goes on.

        Args:
            step: Steps done.
            state: What is needed to go on beside the delta; of no use without it.
            delta: What the steps so far have made, as it would be published.
        """

    def latest(self) -> tuple[int, bytes, Delta | None] | None:
        """The newest checkpoint of which both parts can be read.

        Returns:
            Steps done, the state and the delta; None for a fresh start. There is no delta beside a
            state that an earlier version wrote, which holds it.
        """


class NoCheckpoints:
    """For a run that needs none, such as one in a notebook."""

    def save(self, step: int, state: bytes, delta: Delta) -> None:
        """Drop both.

        Args:
            step: Steps done.
            state: What would be kept.
            delta: What would be kept beside it.
        """

    def latest(self) -> None:
        """There is none."""
        return


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        outcome: ``succeeded``, or which wish ended it.
        delta: The trained delta when it succeeded.
        metrics: ``train``, ``validation`` and ``test`` with before, after and interval.
        test_draws: Metrics of the test split over resamples of its rows, to compare the delta with
            others that were tested on the same rows; of several processes only the lead has them.
        validation_draws: The deciding metric over resamples of the validation split, for a job
            that leaves the test alone: those among which one is chosen are compared by it.
        resolved: Every ``auto`` as it was resolved.
        trainable_parameters: Values that were trained, the head included.
        base_parameters: Values of the frozen base.
    """

    outcome: Outcome
    delta: Delta | None
    metrics: Mapping[str, Any]
    test_draws: Mapping[str, MetricDraws]
    validation_draws: Mapping[str, MetricDraws]
    resolved: Mapping[str, Any]
    trainable_parameters: int
    base_parameters: int
