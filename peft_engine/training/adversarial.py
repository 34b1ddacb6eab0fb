"""Adversarial training on embeddings, and what a model is worth under the same attack.

The attack moves the embeddings of a row in the direction in which the loss rises most, no further
than ``epsilon`` times the norm of the row's own embeddings, so that one default fits every base.
It starts at zero and draws nothing at random: a resumed job meets the very same attacks.

Source: FGM, Miyato et al. 2017, arXiv 1605.07725, equation 5; PGD, Madry et al. 2018,
arXiv 1706.06083, equation 2.2, here in the L2 norm of a row.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.bases.forward import hidden_states, token_embeddings
from peft_engine.configs.training import AdversarialConfig
from peft_engine.parts.batching import Batch
from peft_engine.plan import Actor
from peft_engine.router import Router
from peft_engine.tasks.protocol import Encoded, Head, LossSum, Task
from peft_engine.training.forwards import EvaluationForward

# Legend of axes: B rows, T tokens, D width.

LossOf = Callable[[Tensor], LossSum]
"""Loss of (B, T, D) hidden states."""


def adversarial_backward(
    base: Base, batch: Batch, config: AdversarialConfig, loss_of: LossOf
) -> LossSum:
    """Gradients of ``(clean + weight · attacked) / (1 + weight)``.

    Args:
        base: The base, its plan in force.
        batch: B rows.
        config: The attack.
        loss_of: Loss of the batch.

    Returns:
        The clean loss.
    """
    read = token_embeddings(base, batch)  # (B, T, D)
    clean = read.detach().requires_grad_()
    loss = loss_of(hidden_states(base, batch, embeddings=clean))
    (loss.total / (1 + config.weight)).backward()  # type: ignore[no-untyped-call]
    attacked = _attack(base, batch, config, loss_of, clean.detach(), first=clean.grad)
    attacked.requires_grad_(read.requires_grad)
    again = loss_of(hidden_states(base, batch, embeddings=attacked))
    (again.total * config.weight / (1 + config.weight)).backward()  # type: ignore[no-untyped-call]
    if read.requires_grad:  # the table learns too; the offset of the attack is a constant
        read.backward(clean.grad + attacked.grad)  # type: ignore[no-untyped-call, operator]
    return loss


def attack(base: Base, batch: Batch, config: AdversarialConfig, loss_of: LossOf) -> Tensor:
    """Embeddings at which the loss is higher.

    Args:
        base: The base, its plan in force.
        batch: B rows.
        config: The attack.
        loss_of: Loss of the batch.

    Returns:
        (B, T, D) without a gradient.
    """
    clean = token_embeddings(base, batch).detach()
    return _attack(base, batch, config, loss_of, clean, first=None)


@torch.enable_grad()
def _attack(
    base: Base,
    batch: Batch,
    config: AdversarialConfig,
    loss_of: LossOf,
    clean: Tensor,
    *,
    first: Tensor | None,
) -> Tensor:
    """Climb from ``clean``; ``first`` is the gradient there when it is known already."""
    real = batch.mask.unsqueeze(-1)  # (B, T, 1)
    reach = config.epsilon * _norms(clean.float() * real)  # (B, 1, 1)
    steps, share = (1, 1.0) if config.type == "fgm" else (config.steps, config.step_size)
    offset = torch.zeros_like(clean, dtype=torch.float32)
    for step in range(steps):
        gradient = first if step == 0 else None
        if gradient is None:
            moved = (clean + offset.to(clean.dtype)).requires_grad_()
            total = loss_of(hidden_states(base, batch, embeddings=moved)).total
            (gradient,) = torch.autograd.grad(total, moved)
        upward = gradient.float() * real
        offset = offset + share * reach * upward / _norms(upward).clamp(min=1e-12)
        offset = offset * (reach / _norms(offset).clamp(min=1e-12)).clamp(max=1)
    found: Tensor = (clean + offset.to(clean.dtype)).detach()
    return found


def _norms(rows: Tensor) -> Tensor:
    """(B, 1, 1) norm of each row."""
    norms: Tensor = rows.flatten(1).norm(dim=1)
    return norms[:, None, None]


class AttackedForward(EvaluationForward):
    """The base when every batch is attacked, for evaluation.

    Args:
        base: The base.
        router: Its router.
        actor: Who acts on every row; None is the plain base.
        check: Called before every forward; may raise to interrupt.
        config: The attack.
        loss_of: Loss of a batch by its hidden states: ``(hidden, batch)``.
    """

    def __init__(
        self,
        base: Base,
        router: Router,
        actor: Actor | None,
        check: Callable[[], None],
        *,
        config: AdversarialConfig,
        loss_of: Callable[[Tensor, Batch], LossSum],
    ) -> None:
        super().__init__(base, router, actor, check)
        self._config = config
        self._loss_of = loss_of

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states of the attacked rows.

        Args:
            batch: B rows with targets.

        Returns:
            (B, T, D).
        """
        self._check()
        with self._in_force(batch.rows):
            moved = attack(
                self.base, batch, self._config, lambda hidden: self._loss_of(hidden, batch)
            )
            with torch.no_grad():
                return hidden_states(self.base, batch, embeddings=moved)


def report_robustness(
    base: Base,
    router: Router,
    task: Task,
    split: Encoded,
    config: AdversarialConfig,
    *,
    before: tuple[Actor | None, Head | None],
    after: tuple[Actor | None, Head | None],
    before_is: str,
    batch_size: int,
    check: Callable[[], None],
) -> dict[str, Any]:
    """Metrics under attack; each model is attacked by its own gradients.

    Args:
        base: The base.
        router: Its router.
        task: The task.
        split: The test split.
        config: The attack that the job trained against.
        before: Actor and head that training started from.
        after: Actor and head as they are now.
        before_is: What ``before`` is, in words.
        batch_size: Rows of one forward.
        check: Called before each forward; may raise to interrupt.

    Returns:
        ``attack``, and metrics of ``before`` and ``after``.
    """

    def evaluate(actor: Actor | None, head: Head | None) -> Mapping[str, float]:
        forward = AttackedForward(
            base,
            router,
            actor,
            check,
            config=config,
            loss_of=lambda hidden, batch: task.loss(base, head, hidden, batch, label_smoothing=0.0),
        )
        found = task.evaluate(
            forward, head, split.examples, split.records, batch_size=batch_size, generate_rows=0
        )
        return dict(found.metrics)

    hidden = {"weight"} if config.type == "pgd" else {"weight", "steps", "step_size"}
    return {
        "attack": config.model_dump(mode="json", exclude=hidden),
        "before": evaluate(*before),
        "after": evaluate(*after),
        "before_is": before_is,
    }
