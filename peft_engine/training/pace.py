"""How fast a run goes and how long it still takes, from what was measured in this very run.

Told to people, never decides anything. A number that would have to be guessed is None.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

from peft_engine.bases.base import Base
from peft_engine.configs.job import JobSpec
from peft_engine.training.prepare import Prepared
from peft_engine.training.resolve import Resolved


class Pace:
    """The clock of one run, from its first step in this process on.

    Args:
        step: Steps that were done before.
        tokens: Real tokens seen before.
    """

    def __init__(self, *, step: int, tokens: int) -> None:
        self._started = time.monotonic()
        self._step, self._tokens = step, tokens
        self._evaluation_seconds: list[float] = []

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Measure one evaluation of the validation split.

        Yields:
            While it goes on; one that is cut short does not count.
        """
        before = time.monotonic()
        yield
        self._evaluation_seconds.append(time.monotonic() - before)

    def tell(
        self, resolved: Resolved, *, step: int, tokens: int, evaluates: bool, closing: float | None
    ) -> dict[str, float | None]:
        """What is known after a step, before the evaluation that may be due at it.

        Args:
            resolved: How many steps there are, and between two evaluations.
            step: Steps done, more than before this process.
            tokens: Real tokens seen.
            evaluates: Whether there is a validation split.
            closing: See ``count_closing_evaluations``.

        Returns:
            ``tokens_per_second`` of steps alone; ``training_seconds_left`` until the last step and
            the validation at it, as if nothing stopped the run early; ``eta_seconds`` with the
            reports at the end besides. Seconds that cannot be known yet, or at all, are None.
        """
        seconds = max(time.monotonic() - self._started - sum(self._evaluation_seconds), 1e-9)
        steps_left = resolved.total_steps - step
        left = 0
        if evaluates:
            left = count_evaluations(step, resolved.total_steps, every=resolved.eval_every_steps)
        training = self._with_evaluations(seconds / (step - self._step) * steps_left, left)
        whole = None if training is None else self._with_evaluations(training, closing)
        return {
            "tokens_per_second": (tokens - self._tokens) / seconds,
            "training_seconds_left": training,
            "eta_seconds": whole,
        }

    def _with_evaluations(self, seconds: float, evaluations: float | None) -> float | None:
        if evaluations == 0:
            return seconds
        if evaluations is None or not self._evaluation_seconds:
            return None
        # the median: the first one warms up
        return seconds + statistics.median(self._evaluation_seconds) * evaluations


def count_evaluations(step: int, total_steps: int, *, every: int) -> int:
    """How many evaluations are due from a step on.

    Args:
        step: The step, at least 1; an evaluation that is due at it counts.
        total_steps: The last one, at which there is always one.
        every: Steps between two.

    Returns:
        At least 1.
    """
    return total_steps // every - (step - 1) // every + (total_steps % every > 0)


def count_closing_evaluations(base: Base, job: Prepared, spec: JobSpec) -> float | None:
    """How many evaluations of the validation split the reports at the end amount to.

    Each report evaluates its split twice, tuned and untuned.

    Args:
        base: The base.
        job: The job.
        spec: The same as asked for.

    Returns:
        None where the validations during training say little of them: texts that are written (each
        until it ends by itself), labels by likelihood of a causal base, attacks, a parent beside
        the base, and validations that reuse frozen layers.
    """
    test, validation = job.splits["test"].examples, job.splits["validation"].examples
    if not test and not validation:
        return 0.0
    if job.first_head is None:
        is_alike = job.resolved.validation_generate_rows == spec.training.eval_generate_rows == 0
    else:
        is_alike = base.architecture != "causal"
    is_more = job.start or job.frozen_layers or spec.training.adversarial
    if not validation or not is_alike or is_more:
        return None
    return 2 * (len(test) + len(validation)) / len(validation)
