"""The base as training and evaluation use it: every row under one actor, or the plain base."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.bases.forward import hidden_states
from peft_engine.generation import Generated, Sampling, generate
from peft_engine.parts.batching import Batch
from peft_engine.plan import Actor, Plan
from peft_engine.router import Router
from peft_engine.training.frozen_layers import FrozenLayers


class EvaluationForward:
    """The base with or without a delta, without gradients, interruptible.

    Args:
        base: The base.
        router: Its router.
        actor: Who acts on every row; None is the plain base.
        check: Called before every forward and token; may raise to interrupt.
        frozen_layers: Layers in which the actor does nothing, where they are reused.
    """

    def __init__(
        self,
        base: Base,
        router: Router,
        actor: Actor | None,
        check: Callable[[], None],
        frozen_layers: FrozenLayers | None = None,
    ) -> None:
        self.base = base
        self._router = router
        self._actor = actor
        self._check = check
        self._frozen_layers = frozen_layers

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states.

        Args:
            batch: B rows.

        Returns:
            (B, T, D).
        """
        self._check()
        frozen = self._frozen_layers
        start = nullcontext() if frozen is None else frozen.start(batch)
        with torch.no_grad(), self._in_force(batch.rows), start:
            return hidden_states(self.base, batch)

    def generate(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling]
    ) -> list[Generated]:
        """Continue prompts.

        Args:
            prompts: Token ids of each row.
            samplings: How each row chooses.

        Returns:
            One continuation for each row.
        """
        with self._in_force(len(prompts)):
            return generate(self.base, prompts, samplings, check=self._check)

    @contextmanager
    def _in_force(self, rows: int) -> Iterator[None]:
        with self._router.use(Plan.build([self._actor] * rows)):
            yield
