"""Hidden states below the first layer that a job changes: computed once for each row, then kept.

What is kept must not depend on the batch that asked first: padding and the height of a product
change the last bits of a sum, and a job that goes on after a kill asks in another order. So rows
are computed in groups that are a function of the rows alone.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.bases.forward import hidden_states
from peft_engine.bases.layers import LayerAnswer, answer_below, layer_stack, starting_above
from peft_engine.errors import BaseModelError
from peft_engine.parts.batching import Batch, Example, TokenRow, collate

# Legend of axes: B rows, T tokens, D width.

_GROUP_ROWS = 16
"""A first step asks for rows of as many groups as it has rows, so groups stay small; larger ones
gain little (a product of 16 rows is nearly as quick a row as one of 64)."""

_TOLERANCE = 1e-2
"""Largest relative difference between a forward from the kept states and a plain one. They agree
to rounding where a base's layers are what they seem; where they are not they are far apart."""

_Key = tuple[tuple[int, ...], tuple[int, ...] | None]


class FrozenLayers:
    """The layers of a base below the first one that a job changes.

    Args:
        base: The base; no plan is in force whenever something is computed here.
        first: Number of the first changed layer, from 1; the number of layers where only a head
            is trained.
        examples: All that may be asked for.
        check: Called before each forward; may raise to interrupt.

    Raises:
        BaseModelError: The layers of this base cannot be left out (``base_unsupported``).
    """

    def __init__(
        self, base: Base, first: int, examples: Iterable[Example], check: Callable[[], None]
    ) -> None:
        self._base, self._first, self._check = base, first, check
        self._layers = layer_stack(base)
        rows = {_key(row): row for example in examples for row in example.rows}
        order = sorted(rows, key=lambda key: (-len(key[0]), key[0], key[1] or ()))
        self._rows = rows
        self._groups = [order[i : i + _GROUP_ROWS] for i in range(0, len(order), _GROUP_ROWS)]
        self._group_of = {key: group for group in self._groups for key in group}
        self._kept: dict[_Key, Tensor] = {}
        self._form = self._prove()

    @property
    def rows(self) -> int:
        """Different rows of which states are kept in the end."""
        return len(self._rows)

    @property
    def kept_rows(self) -> int:
        """Those of which states are kept already."""
        return len(self._kept)

    def start(self, batch: Batch, *, may_stop: bool = True) -> AbstractContextManager[None]:
        """Compute what the rows lack; a forward of the batch inside the block starts from there.

        Args:
            batch: B rows. A batch with a row that was not announced is computed whole.
            may_stop: Whether it may be interrupted; where other processes wait for this one at the
                end of a step, it may not.

        Returns:
            The block; a plan may be put in force around the forward.
        """
        rows = [_key(row) for example in batch.examples for row in example.rows]
        if len(rows) != batch.rows or not all(key in self._rows for key in rows):
            return nullcontext()
        for key in rows:
            if key not in self._kept:
                if may_stop:
                    self._check()
                self._keep(self._group_of[key])
        kept = [self._kept[key] for key in rows]
        entering = kept[0].new_zeros(batch.rows, batch.input_ids.shape[1], kept[0].shape[1])
        for place, states in enumerate(kept):
            entering[place, : states.shape[0]] = states  # (B, T, D), zero at padding
        if batch.packing is not None:
            entering = batch.packing.gather(entering).unsqueeze(0)  # (1, N, D)
        return starting_above(self._layers, self._first, replace(self._form, hidden=entering))

    def _keep(self, group: list[_Key]) -> LayerAnswer:
        batch = self._collate(group)
        answer = answer_below(self._base, self._layers, self._first, batch)
        for place, key in enumerate(group):
            # a copy: a view would hold the padding too
            self._kept[key] = answer.hidden[place, : len(key[0])].clone()  # (t, D)
        return answer

    @torch.no_grad()
    def _prove(self) -> LayerAnswer:
        """Compare a forward from kept states with a plain one, on the shortest rows.

        Raises:
            BaseModelError: They differ.
        """
        if not self._layers:
            raise BaseModelError(
                f"{self._base.info.model_type} has no single stack of layers to keep states of",
                code="base_unsupported",
            )
        if not 1 <= self._first <= len(self._layers):
            raise BaseModelError("there is no frozen layer to reuse", code="base_unsupported")
        self._check()
        self._form = self._keep(self._groups[-1])
        batch = self._collate(self._groups[-1])
        real = batch.mask.bool()  # (B, T)
        plain = hidden_states(self._base, batch)[real].float()
        with self.start(batch):
            reused = hidden_states(self._base, batch)[real].float()
        if not (reused - plain).norm() <= _TOLERANCE * plain.norm():
            raise BaseModelError(
                f"layers of {self._base.info.model_type} cannot be left out",
                code="base_unsupported",
            )
        return replace(self._form, hidden=self._form.hidden[:0])

    def _collate(self, group: list[_Key]) -> Batch:
        rows = [Example((self._rows[key],)) for key in group]
        return collate(rows, pad_id=self._base.text.pad_id, device=self._base.device)


def distinct_tokens(examples: Iterable[Example]) -> int:
    """Tokens of which states are kept.

    Args:
        examples: All that may be asked for.

    Returns:
        Those of different rows; equal rows share their states.
    """
    rows = {_key(row): row.tokens for example in examples for row in example.rows}
    return sum(rows.values())


def _key(row: TokenRow) -> _Key:
    """What the states of a row depend on."""
    return tuple(row.input_ids), None if row.type_ids is None else tuple(row.type_ids)
