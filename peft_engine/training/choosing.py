"""Lets methods that choose by the data choose, once, before the first step.

The gradient of the loss by a frozen weight is the gradient by a dense difference that is zero, so
the base needs no gradients of its own. It costs the memory of the chosen-from weights once more
(twice for Fisher information), given back at once.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.bases.forward import hidden_states
from peft_engine.configs.methods import FullConfig
from peft_engine.delta import tensor_name
from peft_engine.methods.table import METHODS, SELECTORS
from peft_engine.parts.batching import Example, collate, epoch_batches
from peft_engine.parts.sites import Site
from peft_engine.parts.stacks import part_read
from peft_engine.plan import Actor, Plan
from peft_engine.router import Router
from peft_engine.runtime import deterministic_sums
from peft_engine.tasks.protocol import Task
from peft_engine.training.trainable import Trainable


def choose_by_data(
    base: Base,
    router: Router,
    task: Task,
    trainable: Trainable,
    examples: Sequence[Example],
    *,
    seed: int,
    check: Callable[[], None],
) -> None:
    """Fill in the choices of every method that depends on the data; nothing else changes.

    Args:
        base: The base.
        router: Its router.
        task: Gives the loss.
        trainable: Parameters with zero effect; its fixed tensors are overwritten.
        examples: Training examples.
        seed: Decides which of them are looked at.
        check: Called before each forward; may raise to interrupt.
    """
    for config in trainable.methods:
        selector = SELECTORS.get(config.type)
        wanted = None if selector is None else selector.looks_at(config)
        if selector is None or wanted is None:
            continue
        part = part_read(base.trunk, has_head=trainable.head_spec is not None)
        sites = METHODS[config.type].sites(part, config)
        count = int(getattr(config, "samples", len(examples)))
        # One row at a time: Fisher information is a mean of squares, not the square of a mean.
        order = epoch_batches(examples, batch_size=1, seed=seed, epoch=0)[:count]
        rows = [examples[row] for (row,) in order]
        scores = _scores(base, router, task, trainable, sites, rows, wanted, check)
        for site in sites:
            chosen = selector.select(site, config, scores[site.path])
            for name, value in chosen.items():
                trainable.fixed[tensor_name(site.path, config.type, name)].copy_(value)


def _scores(
    base: Base,
    router: Router,
    task: Task,
    trainable: Trainable,
    sites: Sequence[Site],
    rows: Sequence[Example],
    wanted: str,
    check: Callable[[], None],
) -> dict[str, Tensor]:
    """Mean gradient by each weight, its size, or mean squared gradient: (O, I) fp32 on the CPU.

    Source: Sung et al. 2021, arXiv 2111.09839, equation 4, with the labels of the data.
    """
    leaves = {
        site.path: torch.zeros(
            site.out_features, site.in_features, device=base.device, requires_grad=True
        )
        for site in sites
    }
    tensors = {path: {"full": {"weight": leaf}} for path, leaf in leaves.items()}
    actor = Actor({"full": FullConfig()}, tensors, {})
    sums = {path: torch.zeros_like(leaf, requires_grad=False) for path, leaf in leaves.items()}
    for row in rows:
        check()
        batch = collate([row], pad_id=base.text.pad_id, device=base.device)
        with (
            deterministic_sums(base.device),
            torch.enable_grad(),
            router.use(Plan.build([actor] * batch.rows)),
        ):
            hidden = hidden_states(base, batch)
            head = trainable.head()
            loss = task.loss(base, head, hidden, batch, label_smoothing=0.0)
            gradients = torch.autograd.grad(loss.total / max(loss.count, 1), list(leaves.values()))
        for path, gradient in zip(leaves, gradients, strict=True):
            sums[path] += gradient.square() if wanted == "fisher" else gradient
    return {path: (total / len(rows)).abs().cpu() for path, total in sums.items()}
