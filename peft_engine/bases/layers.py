"""The stack of layers of a base, and forwards that leave some layers out or compute them twice.

The base stays as it is: inside a ``with`` block a layer answers through another function, and
afterwards through its own again. As with the router, one forward at a time goes through a model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from peft_engine.bases.base import Base
from peft_engine.bases.forward import hidden_states
from peft_engine.errors import BaseModelError
from peft_engine.parts.batching import Batch
from peft_engine.parts.sites import layer_paths, stack_paths

# Legend of axes: B rows, T tokens, D width.

_Forward = Callable[..., Any]


@dataclass(frozen=True)
class LayerAnswer:
    """What a layer gives.

    Attributes:
        hidden: (B, T, D) hidden states in the precision of the base.
        empties: How many Nones follow them in a tuple; None where the layer gives the tensor bare.
    """

    hidden: Tensor
    empties: int | None

    def as_given(self) -> Any:
        """The answer in the form that the base reads.

        Returns:
            A tensor or a tuple.
        """
        return self.hidden if self.empties is None else (self.hidden, *[None] * self.empties)


def layer_stack(base: Base) -> list[nn.Module]:
    """Layers in the order in which they compute.

    Args:
        base: The base.

    Returns:
        The layers; none where the base has not exactly one stack of them.
    """
    return [base.trunk.get_submodule(path) for path in layer_paths(base.trunk)]


def all_layers(base: Base) -> list[nn.Module]:
    """Layers of every stack: of an encoder and its decoder, where there are two.

    Args:
        base: The base.

    Returns:
        Stack by stack, in the order in which they compute; none where there is no stack.
    """
    stacks = stack_paths(base.trunk)
    return [base.trunk.get_submodule(path) for paths in stacks for path in paths]


@torch.no_grad()
def answer_below(base: Base, layers: Sequence[nn.Module], first: int, batch: Batch) -> LayerAnswer:
    """What enters a layer of the plain base; the layers from it on are not computed.

    No plan may be in force.

    Args:
        base: The base.
        layers: Its stack.
        first: Number of the layer, from 1; the number of layers means what leaves the last.
        batch: B rows.

    Returns:
        The answer of the layer below.

    Raises:
        BaseModelError: The layers hand on more than hidden states (``base_unsupported``).
    """
    found: list[Any] = []
    own = layers[first - 1].forward

    def keep(*args: Any, **kwargs: Any) -> Any:
        found.append(own(*args, **kwargs))
        return found[0]

    def skip(*_: Any, **__: Any) -> Any:
        return found[0]

    with answering({layers[first - 1]: keep, **dict.fromkeys(layers[first:], skip)}):
        hidden_states(base, batch)
    if isinstance(found[0], Tensor):
        return LayerAnswer(found[0], None)
    hidden, *others = found[0]
    if any(other is not None for other in others):
        raise BaseModelError(
            f"layers of {base.info.model_type} hand on more than hidden states",
            code="base_unsupported",
        )
    return LayerAnswer(hidden, len(others))


def starting_above(
    layers: Sequence[nn.Module], first: int, below: LayerAnswer
) -> AbstractContextManager[None]:
    """Forwards inside the block begin at a layer; those below it are not computed.

    Args:
        layers: The stack of a base.
        first: Number of the layer, from 1.
        below: What enters it.

    Returns:
        The block.
    """

    def skip(*_: Any, **__: Any) -> Any:
        return below.as_given()

    return answering(dict.fromkeys(layers[:first], skip))


def recomputing(
    layers: Sequence[nn.Module], dropout: torch.Generator
) -> AbstractContextManager[None]:
    """Layers keep only what enters them and are computed again in the backward pass.

    Leave the block, and withdraw the plan, after ``backward`` has returned. transformers' own
    checkpointing does nothing in evaluation mode, in which a frozen base stays.

    Args:
        layers: The layers.
        dropout: The job's own generator: the second time it draws the masks of the first.

    Returns:
        The block.

    Source: Chen et al. 2016, arXiv 1604.06174, one segment a layer.
    """
    return answering({layer: _recomputed(layer.forward, dropout) for layer in layers})


def _recomputed(own: _Forward, dropout: torch.Generator) -> _Forward:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _drawing_again(dropout, dropout.get_state())

    def answer(*args: Any, **kwargs: Any) -> Any:
        # The frozen base draws nothing from torch's global generators: they need no keeping.
        return checkpoint(
            own,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=contexts,
            **kwargs,
        )

    return answer


@contextmanager
def _drawing_again(generator: torch.Generator, drawn: Tensor) -> Iterator[None]:
    """Draw from an earlier state, and leave the generator as it was."""
    now = generator.get_state()
    generator.set_state(drawn)
    try:
        yield
    finally:
        generator.set_state(now)


@contextmanager
def answering(answers: Mapping[nn.Module, _Forward]) -> Iterator[None]:
    """Modules answer through other functions; their hooks run as ever.

    Args:
        answers: What takes the place of each module's ``forward`` inside the block.
    """
    # An attribute of the instance hides the method of its class until it is deleted.
    hidden = {module: vars(module).get("forward") for module in answers}
    try:
        for module, answer in answers.items():
            module.forward = answer
        yield
    finally:
        for module, before in hidden.items():
            if before is None:
                vars(module).pop("forward", None)
            else:
                module.forward = before
