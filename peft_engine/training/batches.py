"""The batches of each optimizer step: which rows, in which order, padded or packed.

Which rows make a step is a function of the seed and the step alone, with or without packing, so a
run can be taken up anywhere.
"""

from collections.abc import Sequence
from dataclasses import replace

from peft_engine.bases.base import Base
from peft_engine.parts.batching import Batch, Example, collate, epoch_batches
from peft_engine.parts.packing import pack
from peft_engine.training.parallel import World, share
from peft_engine.training.prepare import Prepared


class StepBatches:
    """The batches of one job.

    Args:
        base: Its padding and device.
        job: The job.
        seed: The job's seed.
        world: The processes that share each batch.
    """

    def __init__(self, base: Base, job: Prepared, seed: int, world: World) -> None:
        self._base, self._resolved, self._seed = base, job.resolved, seed
        self._world = world
        self._examples = job.splits["train"].examples
        self._share = not job.trainable.actor(training=True).dropout
        self._epoch, self._order = -1, [[0]]

    def of_step(self, step: int) -> list[Batch | None]:
        """What a step learns from.

        Args:
            step: Steps done before it.

        Returns:
            At least one batch; None where none of its rows are this process's own.
        """
        resolved = self._resolved
        epoch, place = divmod(step, resolved.steps_per_epoch)
        if self._epoch != epoch:
            self._order = epoch_batches(
                self._examples, batch_size=resolved.batch_size, seed=self._seed, epoch=epoch
            )
            self._epoch = epoch
        accumulated = resolved.gradient_accumulation
        own = self._order[place * accumulated : (place + 1) * accumulated]
        shares = [share(self._world, rows) for rows in own]
        return [
            self._batch([self._examples[row] for row in rows]) if rows else None for rows in shares
        ]

    def longest(self) -> Batch:
        """The batch that takes most memory, whether or not a step ever meets it.

        Returns:
            The longest examples.
        """
        order = sorted(self._examples, key=lambda example: -example.longest_tokens)
        return self._batch(order[: self._resolved.batch_size])

    def _batch(self, examples: Sequence[Example]) -> Batch:
        device = self._base.device
        batch = collate(examples, pad_id=self._base.text.pad_id, device=device)
        if not self._resolved.packing:
            return batch
        rows = [row.input_ids for example in examples for row in example.rows]
        # Dropout hides values of each row on its own, so rows may not share them.
        return replace(batch, packing=pack(rows, share=self._share, device=device))
