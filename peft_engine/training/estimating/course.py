"""The steps of a run without taking them: how much each reads, and what all of them come to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from peft_engine.parts.batching import Example, epoch_batches
from peft_engine.training.prepare import Prepared

_MOST_EXAMPLES = 200_000
"""Examples of the epochs that are laid out; a second of sorting. What a later epoch reads differs
only in the order."""


@dataclass(frozen=True)
class PlannedStep:
    """One step.

    Attributes:
        number: Steps done before it.
        positions: What its forwards compute, padding included unless rows are packed.
        largest_positions: The same of its largest forward.
        largest_place: Which forward that is.
        tokens: Real tokens.
    """

    number: int
    positions: int
    largest_positions: int
    largest_place: int
    tokens: int


@dataclass(frozen=True)
class Course:
    """All steps of a run.

    Attributes:
        steps: Those that were laid out.
        total_steps: All.
    """

    steps: Sequence[PlannedStep]
    total_steps: int

    @property
    def tokens(self) -> int:
        """Real tokens of all steps."""
        laid_out = sum(step.tokens for step in self.steps)
        return round(laid_out * self.total_steps / len(self.steps))

    @property
    def largest(self) -> PlannedStep:
        """The step with the largest forward."""
        return max(self.steps, key=lambda step: step.largest_positions)

    def typical(self, count: int) -> list[PlannedStep]:
        """Steps that stand for as many others each.

        Args:
            count: How many, at least one.

        Returns:
            The middle one of each of so many groups of like size, the smallest first.
        """
        order = sorted(self.steps, key=lambda step: step.positions)
        count = min(count, len(order))
        return [order[(2 * group + 1) * len(order) // (2 * count)] for group in range(count)]


def lay_out(job: Prepared, *, seed: int) -> Course:
    """Lay out the run of a job.

    Args:
        job: The job.
        seed: Its seed.

    Returns:
        Its steps. Of a split that was read in part the steps are those of the part.
    """
    resolved, examples = job.resolved, job.splits["train"].examples
    per_step = resolved.gradient_accumulation
    found: list[PlannedStep] = []
    epochs = max(1, min(math.ceil(resolved.epochs), _MOST_EXAMPLES // len(examples)))
    for epoch in range(epochs):
        order = epoch_batches(examples, batch_size=resolved.batch_size, seed=seed, epoch=epoch)
        for first in range(0, len(order), per_step):
            batches = [[examples[row] for row in rows] for rows in order[first : first + per_step]]
            found.append(_plan(len(found), batches, packed=resolved.packing))
            if len(found) == resolved.total_steps:
                return Course(found, resolved.total_steps)
    return Course(found, resolved.total_steps)


def _plan(number: int, batches: Sequence[Sequence[Example]], *, packed: bool) -> PlannedStep:
    sizes = [_positions(batch, packed=packed) for batch in batches]
    largest = max(range(len(sizes)), key=sizes.__getitem__)
    tokens = sum(example.tokens for batch in batches for example in batch)
    return PlannedStep(number, sum(sizes), sizes[largest], largest, tokens)


def _positions(batch: Sequence[Example], *, packed: bool) -> int:
    """Of a forward: its rows at the length of the longest, or their tokens one after another."""
    if packed:
        return sum(example.tokens for example in batch)
    rows = sum(len(example.rows) for example in batch)
    return rows * max(example.longest_tokens for example in batch)
