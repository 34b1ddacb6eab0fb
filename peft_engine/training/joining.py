"""Gradients of several jobs by one forward, and the proof that they are those of each job alone.

Who joins: a job whose steps are nothing but a forward and a backward of the whole base. Everything
else trains in the same process at its own turn, and is told why:

* attacks on embeddings run forwards that depend on one another;
* layers that are reused or computed twice leave the common path;
* prefixes act inside attention, where places are no rows;
* encoder-decoder bases, and families whose attention cannot be reached, have no common path.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peft_engine.bases.base import Base
from peft_engine.bases.forward import joint_hidden_states
from peft_engine.methods.table import METHODS
from peft_engine.parts.joining import join
from peft_engine.parts.sites import bias_of, weight_of
from peft_engine.plan import Plan
from peft_engine.router import Router
from peft_engine.training.step import BatchLoss, Share, Stepper

# Legend of axes: P places of a product, I and O its widths.

_LOWEST_PLACES = (4, 8, 12, 16, 24, 32)
"""Heights that may be the least one: kernels take other paths for the last rows of a product, and
on AVX2 with MKL rows are exact from 12 places on (two threads; 4 with one)."""

_PROBED_PLACES = (*range(4, 21), 23, 29, 32, 37, 48, 57, 64, 77, 96, 113, 128, 200, 301)
"""Heights that are looked at: all of the small ones, where kernels change, and samples above; half
a second for a base of 135 M weights on one core."""


def why_alone(stepper: Stepper, base: Base) -> str | None:
    """Why a job cannot share a forward.

    Args:
        stepper: The job's.
        base: The base.

    Returns:
        A reason for people; None: it can.
    """
    job, spec = stepper.job, stepper.spec
    if not base.joins:
        return f"{base.name} has no attention that batches of several jobs could share"
    if spec.training.adversarial is not None:
        return "adversarial training needs forwards of its own"
    if job.frozen_layers is not None:
        return "it reuses frozen layers"
    if job.resolved.gradient_checkpointing:
        return "its layers are computed twice to save memory"
    for config in job.trainable.methods:
        if not METHODS[config.type].treats_tokens_alone:
            return f"the method {config.type} acts inside attention"
    return None


def learn_together(base: Base, router: Router, shares: Sequence[Share]) -> list[BatchLoss]:
    """Answer several shares with one forward and one backward.

    Args:
        base: The base.
        router: Its router.
        shares: Of jobs that may join.

    Returns:
        Their losses in order; the gradients are added to those of each job's step. When anything
        raises, gradients and dropout are left anyhow: see ``Keepsake``.
    """
    steppers = [share.stepper for share in shares]
    joint = join([share.batch for share in shares])
    with router.use(Plan.joint([stepper.actor for stepper in steppers], joint)):
        hidden = joint_hidden_states(base, joint)
        losses = [
            share.stepper.loss(own, share.batch) for share, own in zip(shares, hidden, strict=True)
        ]
        torch.autograd.backward([loss.total for loss in losses])
    return [BatchLoss(float(loss.total.detach()), loss.count) for loss in losses]


@dataclass(frozen=True)
class Keepsake:
    """A job's gradients and dropout before a share is answered, so that it can be answered again.

    Attributes:
        drawn: State of the dropout generator.
        gradients: Of each leaf.
    """

    drawn: Tensor
    gradients: tuple[Tensor | None, ...]

    @classmethod
    def of(cls, stepper: Stepper) -> "Keepsake":
        """What a job has now."""
        own = stepper.job.trainable
        return cls(
            own.dropout.get_state(),
            tuple(
                None if leaf.grad is None else leaf.grad.clone() for leaf in own.tensors.values()
            ),
        )

    def put_back(self, stepper: Stepper) -> None:
        """Make a job what it was.

        Args:
            stepper: The job's.
        """
        own = stepper.job.trainable
        own.dropout.set_state(self.drawn)
        for leaf, gradient in zip(own.tensors.values(), self.gradients, strict=True):
            leaf.grad = None if gradient is None else gradient.clone()

    def equals(self, other: "Keepsake") -> bool:
        """Whether both hold the same bits; a NaN equals a NaN.

        Args:
            other: Of the same job.

        Returns:
            True when the job would go on alike from both.
        """
        if not torch.equal(self.drawn, other.drawn):
            return False
        return all(
            (a is None and b is None) or (a is not None and b is not None and _same_bits(a, b))
            for a, b in zip(self.gradients, other.gradients, strict=True)
        )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return bool(torch.equal(a, b)) or torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def least_exact_places(base: Base) -> int | None:
    """From how many places on a product's rows do not depend on the rows beside them.

    Args:
        base: The base, on the device and with the threads of the training; no plan is in force.

    Returns:
        Places that a batch must have to join; None where products are not exact, as on devices
        that split sums by the size of the whole.
    """
    products: dict[tuple[type, int, int, bool], nn.Module] = {}
    for module in base.trunk.modules():
        if isinstance(module, nn.Linear | Conv1D):
            products[type(module), *_widths(module), bias_of(module) is None] = module
    generator = torch.Generator().manual_seed(0)
    inexact = {
        places
        for module in products.values()
        for places in _PROBED_PLACES
        if not _is_exact(module, places, generator, like=next(base.trunk.parameters()))
    }
    for least in _LOWEST_PLACES:
        if all(places < least for places in inexact):
            return least
    return None


def _widths(module: nn.Module) -> tuple[int, int]:
    """What goes into a linear and what comes out; a quantized one has no plain weight."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    ingoing, outgoing = weight_of(module).T.shape
    return ingoing, outgoing


def _is_exact(module: nn.Module, places: int, generator: torch.Generator, *, like: Tensor) -> bool:
    """Whether a product of some rows is bit for bit that part of a larger one, both ways."""
    before = 37  # odd, so that the part begins anywhere in a kernel's block
    after = 61 + (5 * places if places % 16 == 0 else 0)  # some much higher wholes among them
    widths = _widths(module)
    whole = torch.randn(before + places + after, sum(widths), generator=generator).to(like)
    x, gradient = torch.split(whole, list(widths), dim=1)  # (P, I), (P, O)
    own = slice(before, before + places)
    large = _both_ways(module, x.contiguous(), gradient.contiguous())
    small = _both_ways(module, x[own].contiguous(), gradient[own].contiguous())
    return all(torch.equal(a[own], b) for a, b in zip(large, small, strict=True))


def _both_ways(module: nn.Module, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """(P, O) what a module makes of (P, 1, I), and the (P, I) gradient of that."""
    x = x.unsqueeze(1).requires_grad_()
    y: Tensor = module(x)
    (back,) = torch.autograd.grad(y, x, gradient.unsqueeze(1))
    return y.detach().squeeze(1), back.squeeze(1)


def kept_bytes(share: Share, router: Router, base: Base) -> int:
    """What a forward of a batch keeps for its backward, measured.

    Args:
        share: The batch of a job; afterwards the job is as it was.
        router: The router of the base.
        base: The base.

    Returns:
        Bytes of every storage that autograd holds, weights of the base left out.
    """
    weights = [*base.model.parameters(), *base.model.buffers()]
    frozen = {weight.untyped_storage().data_ptr() for weight in weights}
    # Storages are held, or the address of a freed one would come again.
    held: dict[int, torch.UntypedStorage] = {}

    nothing = torch.empty(0)

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            held[storage.data_ptr()] = storage
        return nothing

    stepper = share.stepper
    drawn = stepper.job.trainable.dropout.get_state()
    joint = join([share.batch])
    plan = Plan.joint([stepper.actor], joint)
    # Nothing is kept in the graph: no backward follows, and a result that its own node keeps is a
    # circle that nothing ever frees.
    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept)
    with router.use(plan), hooks:
        (hidden,) = joint_hidden_states(base, joint)
        stepper.loss(hidden, share.batch)
    stepper.job.trainable.dropout.set_state(drawn)
    return sum(storage.nbytes() for storage in held.values())
