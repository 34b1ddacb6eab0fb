"""Calibration rows, and the walk through a base on which later layers see pruned inputs."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from peft_engine.bases.base import Base
from peft_engine.bases.forward import hidden_states
from peft_engine.bases.layers import answering
from peft_engine.compression.watch import Watch
from peft_engine.parts.batching import Batch, Example, TokenRow, collate
from peft_engine.parts.sites import stack_paths
from peft_engine.parts.stacks import TwoStacks

# Legend of axes: B rows (always 1), T tokens, I input width of a linear, D width.

_DRAW_SEED = 0
"""Which rows are looked at depends on the rows alone, not on the seed of a job, so that jobs on the
same data share a pruned base."""


@dataclass(frozen=True)
class Calibration:
    """Rows on which importance is measured.

    Attributes:
        rows: Rows as the task gives them to the base.
        also: Names what else a choice depends on, where it is more than these rows.
    """

    rows: Sequence[TokenRow]
    also: str = ""

    @classmethod
    def of(cls, examples: Sequence[Example], *, count: int) -> "Calibration":
        """Draw rows of a training split.

        Args:
            examples: Encoded records.
            count: Most rows.

        Returns:
            The rows in the order of the draw, always the same of the same examples.
        """
        rows = [row for example in examples for row in example.rows]
        generator = torch.Generator().manual_seed(_DRAW_SEED)
        chosen = torch.randperm(len(rows), generator=generator)[:count].tolist()
        return cls([rows[place] for place in chosen])

    @property
    def digest(self) -> str:
        """``sha256:…`` over the tokens, and what else decides."""
        digest = hashlib.sha256(self.also.encode())
        for row in self.rows:
            kinds = (row.input_ids, row.type_ids, row.decoder_ids)
            digest.update(f"{[None if ids is None else list(ids) for ids in kinds]}".encode())
        return f"sha256:{digest.hexdigest()}"


@dataclass(frozen=True)
class LayerRun:
    """A layer that has not been pruned, below it layers that have been.

    Attributes:
        path: Name of the layer inside the trunk.
        module: The layer.
        forward: Sends every calibration row through it, and gives what enters and what leaves it:
            pairs of (1, T, D).
    """

    path: str
    module: nn.Module
    forward: Callable[[], Iterator[tuple[Tensor, Tensor]]]


def walk_layers(base: Base, calibration: Calibration, watch: Watch) -> Iterator[LayerRun]:
    """Layers from the first to the last; each is asked again once the caller is done with it.

    Every row goes alone, so that there is no padding to leave out of the sums. A layer costs two
    forwards of itself, however deep it stands: those below answer from memory.

    Args:
        base: The base, with no plan in force.
        calibration: The rows. Where they have none for a decoder, its layers are left out.
        watch: Told of each layer, and asked before each row.

    Yields:
        The layers. The caller may change a layer until it asks for the next.

    Source: Sun et al. 2024, arXiv 2306.11695, section 3 (sequential pruning of blocks).
    """
    batches = [_batch_of(base, row) for row in calibration.rows]
    two = isinstance(base.trunk, TwoStacks)
    done: list[tuple[list[nn.Module], list[Any]]] = []  # layers of a stack, their answers
    stacks, seen = list(stack_paths(base.trunk)), list[str]()
    total = sum(len(paths) for paths in stacks)
    for number, paths in enumerate(stacks):
        if two and number == 0:
            own = [replace(batch, decoder_ids=None) for batch in batches]
        elif two and batches[0].decoder_ids is None:
            return
        else:
            own = batches
        layers = [base.trunk.get_submodule(path) for path in paths]
        answers: list[Any] = [None] * len(own)
        for depth, (path, layer) in enumerate(zip(paths, layers, strict=True)):
            stack = _Stack(base, layers, depth, done, answers)

            def forward(stack: "_Stack" = stack, own: list[Batch] = own) -> Iterator[Any]:
                for place, batch in enumerate(own):
                    watch.check()
                    entered, left = stack.run(place, batch)
                    yield entered, _hidden_of(left)

            watch.part("layers pruned", len(seen), total)
            yield LayerRun(path, layer, forward)
            seen.append(path)
            for place, batch in enumerate(own):
                watch.check()
                answers[place] = stack.run(place, batch)[1]
        done.append((layers, answers))


@dataclass(frozen=True)
class _Stack:
    """One layer of a stack, ready to be run on each row."""

    base: Base
    layers: Sequence[nn.Module]
    depth: int
    done: Sequence[tuple[Sequence[nn.Module], Sequence[Any]]]
    below: Sequence[Any]

    def run(self, place: int, batch: Batch) -> tuple[Tensor, Any]:
        """What enters the layer, (1, T, D), and what it answers, in its own form."""
        found: list[Any] = []
        layer = self.layers[self.depth]
        own = layer.forward

        def keep(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            found.extend((hidden, own(hidden, *args, **kwargs)))
            return found[1]

        answers: dict[nn.Module, Callable[..., Any]] = {layer: keep}
        answers |= dict.fromkeys(self.layers[self.depth + 1 :], lambda *_, **__: found[1])
        answers |= dict.fromkeys(self.layers[: self.depth], lambda *_, **__: self.below[place])
        for layers, outputs in self.done:
            answers |= dict.fromkeys(layers, lambda *_, kept=outputs[place], **__: kept)
        with answering(answers), torch.no_grad():
            hidden_states(self.base, batch)
        return found[0], found[1]


@contextmanager
def seeing_inputs(
    linears: Sequence[nn.Module], see: Callable[[int, Tensor], None]
) -> Iterator[None]:
    """Show what enters linears.

    Args:
        linears: The linears.
        see: Given the place of a linear and its input, (N, I) with one line for each token.
    """

    def hook_of(place: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            see(place, inputs[0].detach().reshape(-1, inputs[0].shape[-1]))

        return hook

    handles = [
        linear.register_forward_pre_hook(hook_of(place)) for place, linear in enumerate(linears)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _batch_of(base: Base, row: TokenRow) -> Batch:
    return collate([Example((row,))], pad_id=base.text.pad_id, device=base.device)


def _hidden_of(answer: Any) -> Tensor:
    hidden: Tensor = answer if isinstance(answer, Tensor) else answer[0]
    return hidden
