"""One job, measured: whether it fits, how long it takes, what its ``auto`` come to, what it makes.

Everything that moves is thrown away: parameters, optimizer and frozen features are of this
measuring alone, and the base, its router and every random number of later jobs stay as they are.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from peft_engine.bases.base import Base
from peft_engine.configs.job import JobSpec
from peft_engine.configs.measurable import explain_unmeasured
from peft_engine.delta import Delta
from peft_engine.errors import ConfigError
from peft_engine.router import Router
from peft_engine.tasks.protocol import Encoded, Head, Record
from peft_engine.training.estimating.course import lay_out
from peft_engine.training.estimating.fitting import Fitting, changes, shorter
from peft_engine.training.estimating.memory import Gauge, free_bytes, is_out_of_memory
from peft_engine.training.estimating.outcome import Estimate, Memory, Seconds
from peft_engine.training.estimating.samples import take_rows
from peft_engine.training.estimating.spread import Spread
from peft_engine.training.estimating.timing import (
    Clock,
    Measured,
    clock_of,
    count_validations,
    forward_seconds,
    time_reports,
    time_steps,
    time_validations,
)
from peft_engine.training.estimating.writing import time_writing
from peft_engine.training.events import TrainingEvent
from peft_engine.training.head_start import FeatureStore, FrozenBase
from peft_engine.training.prepare import Prepared, make_ready, start_head
from peft_engine.training.reading import SPLITS, Read, read_job

_MOST_READ_ROWS = 10_000
"""Of a split; seconds of tokenizing. A larger one is read in part, and said to be."""
_LEAST_FITTED_ROWS = 64
"""Fewer would make a head of another shape likely."""
_HEAD, _STEPS, _VALIDATIONS, _REPORTS = 0.2, 0.4, 0.15, 0.25
"""Shares of the seconds; what writes texts comes besides, two short batches of it."""

_OFF_BY = 0.25
"""Runs were off by less than this in eight of eight comparisons, and in three of the four whose
ranges were kept outside of what had been measured (benchmarks/LOG.md): a run is another hour of the
machine."""


@dataclass(frozen=True)
class Bounds:
    """How much measuring may take.

    Attributes:
        seconds: About as long; the least of everything is measured whatever it takes (two steps on
            the largest batch, one typical step, a batch of each evaluation).
        memory_bytes: More than that does not fit; None: what the device gives, or the machine.
    """

    seconds: float = 20.0
    memory_bytes: int | None = None


def estimate(
    base: Base,
    spec: JobSpec,
    splits: Mapping[str, Sequence[Record]],
    *,
    bounds: Bounds | None = None,
    check: Callable[[], None] = lambda: None,
    router: Router | None = None,
    parent: Delta | None = None,
    clock: Clock = time.perf_counter,
) -> Estimate:
    """Measure what a job would take, by real steps and evaluations on the very base and rows.

    Args:
        base: The frozen base, loaded in the precision of the job.
        spec: What to train and how.
        splits: Canonical records of ``train``, ``validation`` and ``test``, as for ``train``.
        bounds: How much measuring may take.
        check: Called before each forward; may raise to interrupt.
        router: The router of the base, when it has one already.
        parent: The delta to continue from, if any.
        clock: Seconds of which the estimate is.

    Returns:
        The estimate. Nothing of what was measured is left: the same job gives the same bytes
        afterwards.

    Raises:
        ConfigError: The job does not fit the base, the task or the parent; or it cannot be measured
            (``estimate_unavailable``; see ``configs.measurable``).
        DataError: Records that cannot be learned from.
        TrainingError: A step went wrong, as it would in training.
    """  # noqa: DOC502  raised below
    if (why := explain_unmeasured(spec)) is not None:
        raise ConfigError(why.message, code="estimate_unavailable", param=why.param)
    bounds = bounds or Bounds()
    own = _Measuring(base, spec, splits, bounds, check, router or Router(base.trunk), parent, clock)
    return own.run()


@dataclass(frozen=True)
class _Ready:
    """A job that could be prepared, and what that took."""

    read: Read
    job: Prepared
    head: Head | None
    fitted: Encoded
    seconds: Spread


class _Measuring:
    """The parts of one estimate, in their order."""

    def __init__(
        self,
        base: Base,
        spec: JobSpec,
        splits: Mapping[str, Sequence[Record]],
        bounds: Bounds,
        check: Callable[[], None],
        router: Router,
        parent: Delta | None,
        clock: Clock,
    ) -> None:
        self._base, self._spec, self._records = base, spec, splits
        self._bounds, self._check, self._router, self._parent = bounds, check, router, parent
        self._clock = clock_of(base, clock)
        self._started = time.perf_counter()
        self._features = FeatureStore()
        self._notes: list[str] = []
        self._position_seconds = 0.0
        self._steps_per_epoch = 0
        self._gauge = Gauge(base.device)
        limit = bounds.memory_bytes
        self._fitting = Fitting(
            base,
            self._router,
            spec,
            self._gauge,
            limit_bytes=free_bytes(base.device) if limit is None else limit,
            check=check,
        )
        self._peaks: list[int] = []

    def run(self) -> Estimate:
        """Prepare, fit, time."""
        read = self._read(self._spec)
        try:
            ready = self._prepare(read)
            self._note_peak()
            suited = self._find_fitting(ready)
            if suited is None:
                return self._conclude(read, None, None, fits=False)
            job, suggestion = suited
            self._gauge.set_back()
            seconds = self._time(ready, job)
            self._note_peak()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._notes.append(
                "memory ran out outside of the training steps, where no setting but a shorter "
                "max_length changes what is taken"
            )
            return self._conclude(read, None, None, fits=False)
        return self._conclude(
            read, job, seconds, fits=not suggestion, suggestion=suggestion or None
        )

    # ---- before the first step ----------------------------------------------------------------

    def _read(self, spec: JobSpec) -> Read:
        started = self._clock()
        self._notes.clear()
        read = read_job(
            self._base,
            spec,
            self._records,
            check=self._check,
            emit=self._note,
            parent=self._parent,
            most_rows=_MOST_READ_ROWS,
        )
        self._read_seconds = self._clock() - started
        for name in SPLITS:
            rows, taken = len(self._records.get(name, ())), len(read.splits[name].records)
            if taken < rows:
                self._notes.append(f"{taken} of the {rows} rows of {name} were read")
        return read

    def _note(self, event: TrainingEvent) -> None:
        if event.kind == "log" and event.data.get("level") == "warning":
            self._notes.append(str(event.data["message"]))

    def _prepare(self, read: Read) -> _Ready:
        base, train = self._base, read.splits["train"]
        self._position_seconds = forward_seconds(base, train.examples, self._clock, self._check)
        fitted = take_rows(train, self._fitted_rows(train))
        started = self._clock()
        head = None
        if self._parent is None:
            frozen = FrozenBase(base, self._features, self._check)
            head = start_head(frozen, read, fitted.examples, emit=self._note)
        head_seconds = self._clock() - started
        started = self._clock()
        job = self._make_ready(read, head)
        share = len(fitted.examples) / len(train.examples) * self._share_read(read)
        reading = self._read_seconds / self._share_read(read)
        seconds = reading + head_seconds / share + self._clock() - started
        return _Ready(read, job, head, fitted, Spread.of(seconds))

    def _fitted_rows(self, train: Encoded) -> int:
        tokens = sum(example.tokens for example in train.examples) / len(train.records)
        row_seconds = max(self._position_seconds * tokens, 1e-9)
        return max(_LEAST_FITTED_ROWS, int(self._bounds.seconds * _HEAD / row_seconds))

    def _make_ready(self, read: Read, head: Head | None) -> Prepared:
        job = make_ready(
            self._base,
            read,
            router=self._router,
            head=head,
            check=self._check,
            parent=self._parent,
        )
        own = job.resolved
        self._steps_per_epoch = own.steps_per_epoch
        if self._share_read(read) == 1:
            return job
        # epochs are laid out of the part that was read
        batches = math.ceil(len(read.train) / own.batch_size)
        per_epoch = math.ceil(batches / own.gradient_accumulation)
        return replace(job, resolved=replace(own, steps_per_epoch=per_epoch))

    def _share_read(self, read: Read) -> float:
        return len(read.splits["train"].records) / len(self._records["train"])

    # ---- memory -------------------------------------------------------------------------------

    def _find_fitting(self, ready: _Ready) -> tuple[Prepared, dict[str, Any]] | None:
        """The job as asked, or with settings under which it fits; those that differ."""
        fitting = self._fitting
        if fitting.fits(ready.job):
            self._note_trial()
            return ready.job, {}
        found = next((own for own in fitting.smaller(ready.job) if fitting.fits(own)), None)
        if found is None and self._parent is None:
            found = self._find_shorter(ready)
        if found is None:
            return None
        self._note_trial()
        suggestion = changes(fitting.trials[0], fitting.trials[-1])
        return self._make_ready(self._read(self._with(suggestion)), ready.head), suggestion

    def _find_shorter(self, ready: _Ready) -> Prepared | None:
        settings = changes(self._fitting.trials[0], self._fitting.trials[-1])
        longest = max(example.longest_tokens for example in ready.read.train)
        for length in shorter(min(longest, ready.job.resolved.max_length)):
            read = self._read(self._with({**settings, "max_length": length}))
            job = self._make_ready(read, ready.head)
            if self._fitting.fits(job):
                return job
        return None

    def _with(self, settings: Mapping[str, Any]) -> JobSpec:
        training = self._spec.training.model_copy(update=dict(settings))
        return self._spec.model_copy(update={"training": training})

    def _note_trial(self) -> None:
        peak = self._fitting.trials[-1].peak_bytes
        if peak is not None:
            self._peaks.append(peak)

    def _note_peak(self) -> None:
        peak = self._gauge.peak_bytes()
        if peak is not None:
            self._peaks.append(peak)

    # ---- time ---------------------------------------------------------------------------------

    def _time(self, ready: _Ready, job: Prepared) -> tuple[Seconds, float]:
        of = Measured(
            self._base,
            self._router,
            job,
            ready.read.spec,
            self._features,
            ready.fitted,
            self._position_seconds,
            self._check,
            self._clock,
        )
        rows = {name: len(self._records.get(name, ())) for name in SPLITS}
        budget = self._bounds.seconds
        course = lay_out(job, seed=self._spec.training.seed)
        steps, speed = time_steps(of, course, seconds=budget * _STEPS)
        parts = {
            "preparing": ready.seconds,
            "steps": steps,
            "validations": time_validations(
                of, rows=rows["validation"], seconds=budget * _VALIDATIONS
            ),
            "reports": time_reports(of, rows=rows, seconds=budget * _REPORTS),
            "writing": time_writing(of),
        }
        parts = {name: part.at_least(_OFF_BY) for name, part in parts.items()}
        return Seconds(total=Spread.total(parts.values()), **parts), speed

    # ---- the answer ---------------------------------------------------------------------------

    def _conclude(
        self,
        read: Read,
        job: Prepared | None,
        timed: tuple[Seconds, float] | None,
        *,
        fits: bool,
        suggestion: Mapping[str, Any] | None = None,
    ) -> Estimate:
        course = None if job is None else lay_out(job, seed=self._spec.training.seed)
        made = None if job is None else job.trainable
        if job is not None:
            self._note_early_end(job)
        return Estimate(
            fits=fits,
            suggestion=suggestion,
            trials=tuple(self._fitting.trials),
            resolved=None
            if job is None
            else replace(job.resolved, steps_per_epoch=self._steps_per_epoch).as_json(),
            why={} if job is None else dict(job.resolved.why),
            memory=Memory(
                max(self._peaks, default=None) if job is not None else None,
                self._gauge.measure,
                self._base.bytes,
            ),
            seconds=None if timed is None else timed[0],
            tokens=None if course is None else course.tokens,
            tokens_per_second=None if timed is None else timed[1],
            total_steps=None if job is None else job.resolved.total_steps,
            validations=None if job is None else count_validations(job),
            trainable_parameters=None if made is None else made.parameters,
            head_parameters=None if made is None else made.head_parameters,
            base_parameters=self._base.parameters,
            adapter_bytes=None
            if made is None
            else sum(own.nbytes for own in (*made.tensors.values(), *made.fixed.values())),
            rows={name: len(self._records.get(name, ())) for name in SPLITS},
            rows_read={name: len(read.splits[name].records) for name in SPLITS},
            notes=tuple(self._notes),
            measured_seconds=time.perf_counter() - self._started,
        )

    def _note_early_end(self, job: Prepared) -> None:
        patience = job.resolved.patience
        if patience is not None and patience < count_validations(job) - 1:
            self._notes.append(
                f"{patience} validations without a gain end the run early; the seconds are those "
                "of a run that goes to its end"
            )
