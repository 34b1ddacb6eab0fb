"""Rows of different deltas written side by side on one base, a token a step."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from peft_engine.bases.base import Base
from peft_engine.decoding import DecodingLimits, DecodingRow, Stages, make_decoder
from peft_engine.delta import Delta
from peft_engine.plan import Actor, Plan
from peft_engine.router import Router
from peft_engine.serving.rows import PreparedRow

_KEPT_PLANS = 8
"""Plans of the batches that come again: the one that writes, and prompts that are read in parts.
What a plan keeps is made of the deltas of its rows, so that few are kept, and none when no row is
left."""


@dataclass(eq=False)
class Writing:
    """One prepared row from its prompt to its answer.

    Attributes:
        row: As it was prepared.
        choices: Its continuations: one, or as many as it asked for.
        payload: Whatever the caller wants to find again.
    """

    row: PreparedRow
    choices: tuple[DecodingRow, ...]
    payload: Any = None
    _waiting: list[DecodingRow] = field(init=False)

    def __post_init__(self) -> None:
        self._waiting = list(self.choices)

    @property
    def is_over(self) -> bool:
        """Whether every continuation has ended."""
        return all(choice.finish_reason is not None for choice in self.choices)

    @property
    def texts(self) -> tuple[str, ...]:
        """The settled text of every continuation."""
        return tuple(choice.text.settled for choice in self.choices)

    @property
    def output_tokens(self) -> int:
        """Tokens that were written."""
        return sum(len(choice.choices) for choice in self.choices)

    @property
    def unwritten_tokens(self) -> int:
        """Tokens that it might have written and did not."""
        most = sum(choice.sampling.max_new_tokens for choice in self.choices)
        return most - self.output_tokens

    def output(self, base: Base) -> dict[str, Any]:
        """The answer in the form of the HTTP contract.

        Args:
            base: The base, for the texts of tokens.

        Returns:
            ``text``, ``finish_reason`` and ``tokens`` of the first continuation, ``logprobs`` where
            asked, and all continuations as ``choices`` where there are several.
        """
        all_ = [_choice_output(choice, base) for choice in self.choices]
        return all_[0] if len(all_) == 1 else all_[0] | {"choices": all_}


class RowWriter:
    """The decoding batch of one base; used by the thread that owns the base.

    Attributes:
        most_rows: Continuations that it takes at once.

    Args:
        base: The base; only one that generates is asked to write.
        router: Its router.
        actor_of: The actor of a delta.
        limits: Bounds of the batch.
    """

    def __init__(
        self,
        base: Base,
        router: Router,
        actor_of: Callable[[Delta | None], Actor | None],
        limits: DecodingLimits,
    ) -> None:
        self._base = base
        self._router = router
        self._actor_of = actor_of
        self._decoder = make_decoder(base, self._in_force, limits)
        self.most_rows = limits.rows
        self._plans: OrderedDict[tuple[int, ...], tuple[Sequence[Any], Plan]] = OrderedDict()
        self._open: list[Writing] = []

    @property
    def open(self) -> Sequence[Writing]:
        """Rows that have begun and not ended."""
        return tuple(self._open)

    @property
    def rows(self) -> int:
        """Continuations in the batch now."""
        return len(self._decoder.rows)

    @property
    def cache_bytes(self) -> int:
        """Memory of keys and values, in bytes."""
        return self._decoder.cache_bytes

    @property
    def kernel(self) -> str:
        """By which products texts are written; ``general``: those of the base's own modules."""
        return self._decoder.kernel

    @property
    def layout_bytes(self) -> int:
        """Memory of the weights as they are laid out for writing, beside the base's own."""
        return self._decoder.layout_bytes

    def lay_out(self) -> None:
        """Make what the first row would wait for; between two steps."""
        self._decoder.lay_out()

    def prepare(self, row: PreparedRow, payload: Any = None) -> Writing:
        """Make a row ready to begin.

        Args:
            row: A prepared row of this base that generates.
            payload: Whatever the caller wants to find again.

        Returns:
            The row; nothing is computed yet.
        """
        owner = self._actor_of(row.delta)
        choices = tuple(
            DecodingRow.of(
                list(row.examples[0].input_ids),
                sampling,
                text=self._base.text,
                device=self._base.device,
                owner=owner,
            )
            for sampling in row.samplings
        )
        return Writing(row, choices, payload)

    def has_room(self, row: PreparedRow) -> bool:
        """Whether a row can begin now.

        Args:
            row: A prepared row of this base that generates.

        Returns:
            True when its first continuation fits; the others follow when there is room, before any
            row that has not begun: a stream of new rows would keep them out for ever.
        """
        if any(writing._waiting for writing in self._open):
            return False
        return self._decoder.has_room(row.input_tokens + row.samplings[0].max_new_tokens)

    def begin(self, writing: Writing) -> None:
        """Take a row in; the next step begins to read its prompt.

        Args:
            writing: A row that has not begun.
        """
        self._open.append(writing)
        self._join(writing)

    def step(self, only: Sequence[Writing] | None = None) -> list[Writing]:
        """One token for every row that has read its prompt.

        Args:
            only: Rows that take part, the others wait; None: all.

        Returns:
            Rows that moved; those that are over have left.
        """
        for writing in self._open:
            self._join(writing)
        choices = None if only is None else [choice for own in only for choice in own.choices]
        moved = set(map(id, self._decoder.step(choices)))
        return self._settle(
            [w for w in self._open if any(id(choice) in moved for choice in w.choices)]
        )

    def step_alone(self, writing: Writing) -> list[Writing]:
        """The same for one row, to find out which of a batch makes the forward fail.

        Args:
            writing: A row that has begun.

        Returns:
            The row if it moved.
        """
        moved = self._decoder.step(only=writing.choices)
        return self._settle([writing]) if moved else []

    def cancel(self, writing: Writing) -> None:
        """Let a row go between two steps; the others are not touched.

        Args:
            writing: A row; one that is not open is left as it is.
        """
        if writing in self._open:
            writing._waiting.clear()
            for choice in writing.choices:
                self._decoder.cancel(choice)
            self._settle([writing])

    def forget(self, owner: Actor) -> None:
        """Drop the kept plans that an actor has a part in, so that its memory can go.

        The plan of the rows that are written now is not among them while the bank pins their
        deltas: to make that one again would hold up every row.

        Args:
            owner: The actor.
        """
        for key in [key for key in self._plans if id(owner) in key]:
            del self._plans[key]

    def _join(self, writing: Writing) -> None:
        waiting = writing._waiting
        while waiting and self._decoder.has_room(waiting[0].longest_tokens):
            self._decoder.join(waiting.pop(0))

    def _settle(self, moved: list[Writing]) -> list[Writing]:
        for writing in moved:
            if writing.is_over or not (writing._waiting or self._is_running(writing)):
                self._open.remove(writing)
        if not self._open:
            self._plans.clear()
        return moved

    def _is_running(self, writing: Writing) -> bool:
        running = set(map(id, self._decoder.rows))
        return any(id(choice) in running for choice in writing.choices)

    @contextmanager
    def _in_force(self, owners: Sequence[Any]) -> Iterator[Stages]:
        """The plan of a batch; the same rows get the same plan, with all that it keeps."""
        key = tuple(map(id, owners))
        if key not in self._plans:
            # The owners are kept with the plan, so that an id cannot come to mean another object.
            self._plans[key] = (owners, Plan.in_order(owners))
        self._plans.move_to_end(key)
        if len(self._plans) > _KEPT_PLANS:
            self._plans.popitem(last=False)
        plan = self._plans[key][1]
        with self._router.use(plan):
            yield plan.stages


def _choice_output(choice: DecodingRow, base: Base) -> dict[str, Any]:
    found: dict[str, Any] = {
        "text": choice.text.settled,
        "finish_reason": choice.finish_reason,
        "tokens": len(choice.choices),
    }
    if choice.sampling.logprobs is not None:
        found["logprobs"] = [
            {
                "token": base.text.token_text(one.token),
                "logprob": one.logprob,
                "top": [
                    {"token": base.text.token_text(token), "logprob": value}
                    for token, value in one.top
                ],
            }
            for one in choice.choices
        ]
    return found
