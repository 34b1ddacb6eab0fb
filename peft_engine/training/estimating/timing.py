"""How long it takes: real steps and evaluations of typical size, and what they stand for."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from peft_engine.bases.base import Base
from peft_engine.bases.forward import hidden_states
from peft_engine.configs.job import JobSpec
from peft_engine.parts.batching import Batch, Example, collate
from peft_engine.parts.spacing import evenly_spaced
from peft_engine.router import Router
from peft_engine.tasks.protocol import Encoded
from peft_engine.training.batches import StepBatches
from peft_engine.training.estimating.course import Course, PlannedStep
from peft_engine.training.estimating.fitting import new_stepper, take_step
from peft_engine.training.estimating.samples import count_positions, take_rows
from peft_engine.training.estimating.spread import Spread
from peft_engine.training.head_start import FeatureStore
from peft_engine.training.pace import count_evaluations
from peft_engine.training.parallel import Solo
from peft_engine.training.prepare import EVALUATION_ROWS, Prepared
from peft_engine.training.report import report_split
from peft_engine.training.validating import validate

Clock = Callable[[], float]

_PROBED_EXAMPLES = 4
_MOST_TYPICAL_STEPS = 12
_MOST_ROUNDS = 3
_REPORT_PASSES = 3
"""Passes over a split that its report is taken to need when it is decided how much of the split is
read: one tuned, one untuned, one of the frozen head."""


@dataclass(frozen=True)
class Measured:
    """Everything that is measured about one job.

    Attributes:
        base: The base.
        router: Its router.
        job: The job; its parameters move.
        spec: What was asked for.
        features: Frozen features of this measuring.
        fitted: The training rows that the head was fitted on.
        position_seconds: See ``forward_seconds``.
        check: Called before each forward; may raise to interrupt.
        clock: Seconds, once the device has done what it was given.
    """

    base: Base
    router: Router
    job: Prepared
    spec: JobSpec
    features: FeatureStore
    fitted: Encoded
    position_seconds: float
    check: Callable[[], None]
    clock: Clock

    def rows_within(self, split: Encoded, seconds: float, *, passes: int) -> int:
        """How many rows of a split so many seconds allow.

        Args:
            split: The split.
            seconds: For all passes.
            passes: How often each row is read.

        Returns:
            One batch at least.
        """
        row_seconds = self.position_seconds * count_positions(split) / max(len(split.records), 1)
        return max(EVALUATION_ROWS, int(seconds / max(row_seconds * passes, 1e-9)))


def clock_of(base: Base, seconds: Clock) -> Clock:
    """A clock that waits for the device.

    Args:
        base: On the device.
        seconds: Any clock.

    Returns:
        The same on a CPU.
    """

    def now() -> float:
        torch.cuda.synchronize(base.device)
        return seconds()

    return now if base.device.type == "cuda" else seconds


def forward_seconds(
    base: Base, examples: Sequence[Example], clock: Clock, check: Callable[[], None]
) -> float:
    """Seconds of a plain forward for each position.

    Args:
        base: The base, no plan in force.
        examples: Some to read, at least one.
        clock: Seconds.
        check: Called before each forward; may raise to interrupt.

    Returns:
        Seconds.
    """
    own = [examples[place] for place in evenly_spaced(len(examples), _PROBED_EXAMPLES)]
    batch = collate(own, pad_id=base.text.pad_id, device=base.device)
    seconds = 0.0
    for _ in range(2):  # the first one warms up
        check()
        started = clock()
        with torch.no_grad():
            hidden_states(base, batch)
        seconds = clock() - started
    return seconds / sum(len(row.input_ids) for example in own for row in example.rows)


def time_steps(of: Measured, course: Course, *, seconds: float) -> tuple[Spread, float]:
    """Real optimizer steps.

    Args:
        of: The job.
        course: All of its steps.
        seconds: About as long as it may take; one step is always taken.

    Returns:
        Seconds of all steps of the run, and real tokens a second.
    """
    seed = of.spec.training.seed
    batches = StepBatches(of.base, of.job, seed, Solo())
    stepper = new_stepper(of.base, of.router, of.job, of.spec)
    kept = _Kept(of)

    def take(planned: PlannedStep) -> float:
        own = [batch for batch in batches.of_step(planned.number) if batch is not None]
        kept.fill(own)
        of.check()
        started = of.clock()
        take_step(stepper, planned.number, own, of.check)
        return of.clock() - started

    (middle,) = course.typical(1)
    first = take(middle)
    count = max(1, min(_MOST_TYPICAL_STEPS, int(seconds / first)))
    typical = course.typical(count)
    rounds = max(1, min(_MOST_ROUNDS, int(seconds / (first * len(typical)))))
    # The middle one alone has just been taken.
    taken = (
        [[first]]
        if (len(typical), rounds) == (1, 1)
        else [[take(planned) for planned in typical] for _ in range(rounds)]
    )
    whole = Spread.among([sum(own) / len(own) * course.total_steps for own in taken])
    whole = Spread.total([whole, Spread.of(kept.seconds_left())])
    return whole, course.tokens / whole.likely


class _Kept:
    """What reused layers cost besides: each row is computed once, in the first epoch."""

    def __init__(self, of: Measured) -> None:
        self._clock, self._frozen = of.clock, of.job.frozen_layers
        self._seconds, self._rows = 0.0, 0

    def fill(self, batches: Sequence[Batch]) -> None:
        """Compute what the rows of a step lack."""
        if self._frozen is None:
            return
        before, started = self._frozen.kept_rows, self._clock()
        for batch in batches:
            self._frozen.start(batch)
        self._seconds += self._clock() - started
        self._rows += self._frozen.kept_rows - before

    def seconds_left(self) -> float:
        """For all rows of the job."""
        if self._frozen is None or self._rows == 0:
            return 0.0
        return self._seconds / self._rows * self._frozen.rows


def time_validations(of: Measured, *, rows: int, seconds: float) -> Spread:
    """Evaluations during training, texts left out.

    Args:
        of: The job.
        rows: Records of the whole validation split.
        seconds: About as long as it may take; one batch is always evaluated.

    Returns:
        Seconds of all of them.
    """
    split = of.job.splits["validation"]
    if not split.examples:
        return Spread.of(0.0)
    part = take_rows(split, of.rows_within(split, seconds / 2, passes=1))
    resolved = replace(of.job.resolved, validation_generate_rows=0)
    job = replace(of.job, resolved=resolved, splits={**of.job.splits, "validation": part})
    taken = []
    for _ in range(2):  # a second time where the first was quick
        started = of.clock()
        validate(of.base, of.router, job, of.check)
        taken.append(of.clock() - started)
        if sum(taken) > seconds:
            break
    share = count_positions(part) / count_positions(split) * len(split.records) / rows
    return Spread.among(taken).times(count_validations(of.job) / share)


def count_validations(job: Prepared) -> int:
    """How often a run is validated if nothing ends it early, its start included.

    Args:
        job: The job.

    Returns:
        0 without a validation split.
    """
    if not job.splits["validation"].examples:
        return 0
    own = job.resolved
    return 1 + count_evaluations(1, own.total_steps, every=own.eval_every_steps)


def time_reports(of: Measured, *, rows: dict[str, int], seconds: float) -> Spread:
    """The reports at the end, texts left out.

    Args:
        of: The job.
        rows: Records of each whole split.
        seconds: About as long as it may take; one batch of each split is always read.

    Returns:
        Seconds of all of them.
    """
    spec = of.spec.model_copy(
        update={"training": of.spec.training.model_copy(update={"eval_generate_rows": 0})}
    )
    resolved = replace(of.job.resolved, validation_generate_rows=0)
    found = []
    for name, split in _reported(of.job):
        part = take_rows(split, of.rows_within(split, seconds / 2, passes=_REPORT_PASSES))
        splits = {**of.job.splits, "train": of.fitted, name: part}
        job = replace(of.job, resolved=resolved, splits=splits)
        started = of.clock()
        report_split(
            of.base,
            of.router,
            job,
            spec,
            name=name,
            features=of.features,
            check=of.check,
            on_evaluated=lambda *_: None,
        )
        share = count_positions(part) / count_positions(split) * len(split.records) / rows[name]
        found.append(Spread.of((of.clock() - started) / share))
    return Spread.total(found)


def _reported(job: Prepared) -> Iterator[tuple[Literal["validation", "test"], Encoded]]:
    names: tuple[Literal["validation", "test"], ...] = ("validation", "test")
    for name in names:
        if job.splits[name].examples:
            yield name, job.splits[name]
