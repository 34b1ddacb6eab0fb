"""Does it fit: real optimizer steps on the largest batch, and what to change where they do not fit.

Nothing is guessed from sizes, but for one thing: where memory is the machine's own, running out of
it means that the system ends the process, so a step that would is not tried.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from peft_engine.bases.base import Base
from peft_engine.bases.layers import all_layers
from peft_engine.configs.job import JobSpec
from peft_engine.parts.batching import Batch
from peft_engine.router import Router
from peft_engine.training.activations import activation_bytes
from peft_engine.training.batches import StepBatches
from peft_engine.training.estimating.course import lay_out
from peft_engine.training.estimating.memory import Gauge, free_caches, is_out_of_memory
from peft_engine.training.parallel import Solo
from peft_engine.training.prepare import Prepared
from peft_engine.training.step import Stepper

_STEPS = 2
"""The first makes the optimizer's own tensors, which are there from the second on."""
_MOST_ACCUMULATION = 1024
"""``training.gradient_accumulation``."""
_LEAST_LENGTH_TOKENS = 16


@dataclass(frozen=True)
class Trial:
    """Settings under which steps were tried.

    Attributes:
        batch_size: Rows of one forward.
        gradient_accumulation: Forwards of one step.
        gradient_checkpointing: Whether layers are computed twice.
        max_length: Longest row in tokens.
        fits: Whether steps came through, within the bound.
        peak_bytes: What they took at most; None where it was not measured, or not to the end.
    """

    batch_size: int
    gradient_accumulation: int
    gradient_checkpointing: bool
    max_length: int
    fits: bool
    peak_bytes: int | None

    @classmethod
    def of(cls, job: Prepared, *, fits: bool, peak_bytes: int | None) -> "Trial":
        """How steps of a job went.

        Args:
            job: The job.
            fits: Whether they came through.
            peak_bytes: What they took at most.

        Returns:
            The trial.
        """
        own = job.resolved
        return cls(
            own.batch_size,
            own.gradient_accumulation,
            own.gradient_checkpointing,
            own.max_length,
            fits,
            peak_bytes,
        )


class Fitting:
    """Tries steps of a job under one setting after another.

    Args:
        base: The base.
        router: Its router.
        spec: What was asked for.
        gauge: Measures memory.
        limit_bytes: More than that does not fit; None: whatever the allocator gives.
        check: Called before each forward; may raise to interrupt.
    """

    def __init__(
        self,
        base: Base,
        router: Router,
        spec: JobSpec,
        gauge: Gauge,
        *,
        limit_bytes: int | None,
        check: Callable[[], None],
    ) -> None:
        self._base, self._router, self._spec = base, router, spec
        self._gauge, self._limit_bytes, self._check = gauge, limit_bytes, check
        self.trials: list[Trial] = []

    def fits(self, job: Prepared) -> bool:
        """Take real steps on the largest batch of a job.

        Args:
            job: The job; its parameters move.

        Returns:
            Whether they came through; the trial is kept.
        """
        largest = self._largest(job)
        if self._would_end_the_process(job, largest):
            self.trials.append(Trial.of(job, fits=False, peak_bytes=None))
            return False
        peak = self._take(job, largest)
        fits = peak is not None and (self._limit_bytes is None or peak <= self._limit_bytes)
        if not fits:
            free_caches(self._base.device)  # or the next trial would be charged for this one
        known = None if peak is None or self._gauge.measure is None else peak
        self.trials.append(Trial.of(job, fits=fits, peak_bytes=known))
        return fits

    def smaller(self, job: Prepared) -> Iterator[Prepared]:
        """The same job with smaller forwards, as many rows in a step.

        Args:
            job: The job.

        Yields:
            Halves of its batch down to one row, then that with layers computed twice.
        """
        own = job.resolved
        for batch_size, accumulation in halves(own.batch_size, own.gradient_accumulation):
            own = replace(own, batch_size=batch_size, gradient_accumulation=accumulation)
            yield replace(job, resolved=own)
        if not own.gradient_checkpointing and all_layers(self._base):
            yield replace(job, resolved=replace(own, gradient_checkpointing=True))

    def _largest(self, job: Prepared) -> Batch:
        seed = self._spec.training.seed
        step = lay_out(job, seed=seed).largest
        batches = StepBatches(self._base, job, seed, Solo()).of_step(step.number)
        batch = batches[step.largest_place]
        return batch if batch is not None else StepBatches(self._base, job, seed, Solo()).longest()

    def _take(self, job: Prepared, batch: Batch) -> int | None:
        """What steps take at most; None where memory ran out."""
        self._gauge.set_back()
        # the gradients of a batch stand beside those that the step has gathered before
        batches = [batch] * min(_STEPS, job.resolved.gradient_accumulation)
        try:
            stepper = new_stepper(self._base, self._router, job, self._spec)
            for step in range(_STEPS):
                self._check()
                take_step(stepper, step, batches, self._check)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            is_out = True
        else:
            is_out = False
        peak = self._gauge.peak_bytes()
        job.optimizer.zero_grad(set_to_none=True)
        return None if is_out else peak or 0

    def _would_end_the_process(self, job: Prepared, batch: Batch) -> bool:
        """Whether the system would rather end this process than give it so much."""
        if self._base.device.type != "cpu" or self._limit_bytes is None:
            return False
        rows = [row for example in batch.examples for row in example.rows]
        from_above = activation_bytes(self._base, rows, rows=batch.rows)
        if job.resolved.gradient_checkpointing or from_above <= self._limit_bytes:
            return False
        if len(batch.examples) == 1:
            return False
        alone = self._take(job, batch.part(0, 1))
        return alone is None or alone * len(batch.examples) > self._limit_bytes


def halves(batch_size: int, accumulation: int) -> Iterator[tuple[int, int]]:
    """Smaller batches for as many rows in a step.

    Args:
        batch_size: Rows of one forward.
        accumulation: Forwards of one step.

    Yields:
        Rows and forwards: each time the largest divisor of the step's rows that is at most half of
        the rows before, while so many forwards are allowed.
    """
    rows = batch_size * accumulation
    while batch_size > 1:
        batch_size = next(own for own in range(batch_size // 2, 0, -1) if rows % own == 0)
        if rows // batch_size > _MOST_ACCUMULATION:
            return
        yield batch_size, rows // batch_size


def shorter(length: int) -> Iterator[int]:
    """Lengths to try when nothing else helps.

    Args:
        length: Tokens of the longest row.

    Yields:
        Halves.
    """
    while (length := length // 2) >= _LEAST_LENGTH_TOKENS:
        yield length


def changes(asked: Trial, fitting: Trial) -> dict[str, Any]:
    """What of ``training`` must be set for a job to fit.

    Args:
        asked: The job as it was asked for.
        fitting: The settings that fit.

    Returns:
        Those that differ.
    """
    names = ("batch_size", "gradient_accumulation", "gradient_checkpointing", "max_length")
    return {
        name: getattr(fitting, name)
        for name in names
        if getattr(fitting, name) != getattr(asked, name)
    }


def new_stepper(base: Base, router: Router, job: Prepared, spec: JobSpec) -> Stepper:
    """What takes steps that prove nothing: batches are chosen by size, and some site may rest.

    Args:
        base: The base.
        router: Its router.
        job: The job.
        spec: What was asked for.

    Returns:
        The stepper.
    """
    stepper = Stepper(base, router, job, spec, Solo())
    stepper.proven = True
    return stepper


def take_step(stepper: Stepper, step: int, batches: list[Batch], check: Callable[[], None]) -> int:
    """One whole optimizer step.

    Args:
        stepper: Of the job.
        step: Steps done before it.
        batches: What it reads.
        check: Called between two batches; may raise to interrupt.

    Returns:
        Its real tokens.
    """
    taking = stepper.take(step, batches, check)
    try:
        share = next(taking)
        while True:
            share = taking.send(share.alone())
    except StopIteration as end:
        return int(end.value.tokens)
