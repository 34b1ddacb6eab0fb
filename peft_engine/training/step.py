"""One optimizer step: gradients of its batches, then mean, clip, rate and update.

It knows one job and its step, and neither evaluations nor checkpoints. It does not say who computes
the gradients of a batch: a step asks for them, and is answered by a forward of its own or by its
share of one that several jobs have in common.
"""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peft_engine.bases.base import Base
from peft_engine.bases.forward import hidden_states
from peft_engine.bases.layers import all_layers, layer_stack, recomputing
from peft_engine.configs.job import JobSpec
from peft_engine.delta import HEAD
from peft_engine.errors import TrainingError
from peft_engine.parts.batching import Batch
from peft_engine.plan import Actor, Plan
from peft_engine.router import Router
from peft_engine.runtime import deterministic_sums
from peft_engine.tasks.protocol import LossSum
from peft_engine.training.activations import first_changed_layer
from peft_engine.training.adversarial import adversarial_backward
from peft_engine.training.events import Interrupted
from peft_engine.training.parallel import World
from peft_engine.training.prepare import Prepared
from peft_engine.training.schedule import rate_factor

PATIENT_STEPS = 2
"""Steps that may pass without any gradient at the sites: one for the head to leave zero, one for a
first batch of rows that its new weights already answer."""


@dataclass(frozen=True)
class StepSum:
    """What a step saw.

    Attributes:
        loss: Summed over its targets.
        count: Number of targets, or the sum of their weights.
        tokens: Real tokens.
    """

    loss: float
    count: float
    tokens: int


@dataclass(frozen=True)
class BatchLoss:
    """The answer to a share: the gradients of its summed loss stand in the leaves.

    Attributes:
        total: The loss, summed over the targets.
        count: Number of targets, or the sum of their weights.
    """

    total: float
    count: float


@dataclass(frozen=True)
class Share:
    """What a run asks for: gradients of one batch's summed loss, added to those of its step.

    Attributes:
        stepper: Of the job that asks.
        batch: The batch.
    """

    stepper: "Stepper"
    batch: Batch

    def alone(self) -> BatchLoss:
        """Answer with a forward and a backward of its own.

        Returns:
            The loss.
        """
        return self.stepper.learn(self.batch)


class Stepper:
    """Takes the optimizer steps of one job.

    Args:
        base: The base.
        router: Its router.
        job: The job; its parameters and optimizer are changed.
        spec: Clipping, schedule and loss.
        world: The processes that take each step together.
    """

    def __init__(
        self, base: Base, router: Router, job: Prepared, spec: JobSpec, world: World
    ) -> None:
        self._base, self._router, self._job, self._spec = base, router, job, spec
        self._world = world
        self._actor = job.trainable.actor(training=True)
        self.proven = False
        """Whether a step has shown that every site gets a gradient."""
        self._twice = self._layers_with_gradients() if job.resolved.gradient_checkpointing else []

    @property
    def job(self) -> Prepared:
        """The job."""
        return self._job

    @property
    def spec(self) -> JobSpec:
        """What was asked for."""
        return self._spec

    @property
    def actor(self) -> Actor:
        """The job's parameters as they act on the rows of a step."""
        return self._actor

    def take(
        self, step: int, batches: Sequence[Batch | None], check: Callable[[], None]
    ) -> Generator[Share, BatchLoss, StepSum]:
        """One step over one or more batches.

        Args:
            step: Steps done before it.
            batches: What this process learns from; None where none of a batch's rows are its own.
            check: Called between two batches; may raise to interrupt, and the step is then as if
                never begun.

        Yields:
            Each batch; to be answered with its loss, its gradients in place.

        Returns:
            What it saw, in all processes.

        Raises:
            Interrupted: ``check`` or whoever answers says so.
            TrainingError: The loss is not a number, there was no target, or a site gets no
                gradient at the first step.
        """
        self._job.optimizer.zero_grad(set_to_none=True)
        total, count, tokens = 0.0, 0.0, 0
        drawn = self._job.trainable.dropout.get_state()
        try:
            for place, batch in enumerate(batches):
                if place:
                    check()
                if batch is None:
                    continue
                found = yield Share(self, batch)
                total, count = total + found.total, count + found.count
                tokens += batch.tokens
        except Interrupted:
            self._job.trainable.dropout.set_state(drawn)  # what a checkpoint must hold
            raise
        total, count, tokens = self._add_up(total, count, tokens)
        if count == 0:
            raise TrainingError(
                f"no row of step {step + 1} has a target: nothing can be learned from it; "
                "leave such rows out",
                code="nothing_to_learn",
                param="dataset_id",
            )
        if not math.isfinite(total):
            raise self._not_finite(f"the loss at step {step + 1} is {total / count}")
        self._update(step, count)
        return StepSum(total, count, tokens)

    def _layers_with_gradients(self) -> Sequence[nn.Module]:
        """The layers that keep anything for the backward pass; of two stacks all are taken."""
        layers = layer_stack(self._base)
        if not layers or self._spec.training.adversarial is not None:
            return all_layers(self._base)
        return layers[first_changed_layer(self._job.trainable, len(layers)) :]

    def learn(self, batch: Batch) -> BatchLoss:
        """Add the gradients of a batch's summed loss to those of the step.

        Args:
            batch: B rows.

        Returns:
            The loss.
        """
        frozen = self._job.frozen_layers
        alone = self._world.size == 1
        start = nullcontext() if frozen is None else frozen.start(batch, may_stop=alone)
        plan = Plan.build([self._actor] * batch.forward_rows)
        with (
            deterministic_sums(self._base.device),
            self._router.use(plan),
            start,
            recomputing(self._twice, self._job.trainable.dropout),
        ):
            if self._spec.training.adversarial is None:
                loss = self.loss(hidden_states(self._base, batch), batch)
                loss.total.backward()  # type: ignore[no-untyped-call]
            else:
                config = self._spec.training.adversarial
                loss = adversarial_backward(
                    self._base, batch, config, lambda hidden: self.loss(hidden, batch)
                )
        return BatchLoss(float(loss.total.detach()), loss.count)

    def _add_up(self, total: float, count: float, tokens: int) -> tuple[float, float, int]:
        """Sums and gradients over all processes."""
        if self._world.size == 1:
            return total, count, tokens
        leaves = list(self._job.trainable.tensors.values())
        own = [float(leaf.grad is not None) for leaf in leaves]
        sums = torch.tensor([total, count, tokens, *own], dtype=torch.float64)
        self._world.add([sums])
        total, count, whole, *learned = sums.tolist()
        # A leaf that no row needed keeps no gradient: the optimizer leaves it alone.
        moved = [leaf for leaf, times in zip(leaves, learned, strict=True) if times > 0]
        for leaf in moved:
            if leaf.grad is None:
                leaf.grad = torch.zeros_like(leaf)
        if moved:
            self._world.add([leaf.grad for leaf in moved if leaf.grad is not None])
        return total, count, int(whole)

    def loss(self, hidden: Tensor, batch: Batch) -> LossSum:
        """Loss of a batch.

        Args:
            hidden: (B, T, D) hidden states.
            batch: The same rows.

        Returns:
            Sum and count.
        """
        return self._job.task.loss(
            self._base,
            self._job.trainable.head(),
            hidden,
            batch,
            label_smoothing=self._spec.training.label_smoothing,
            class_weights=self._job.class_weights,
        )

    def _update(self, step: int, count: float) -> None:
        """Mean over targets, clip, set the rate, step."""
        job, training = self._job, self._spec.training
        leaves = list(job.trainable.tensors.values())
        if not self.proven:
            self.proven = self._check_gradients(patient=step < PATIENT_STEPS)
        torch._foreach_mul_([leaf.grad for leaf in leaves if leaf.grad is not None], 1 / count)
        if training.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(leaves, training.max_grad_norm)
        factor = rate_factor(
            step,
            total_steps=job.resolved.total_steps,
            warmup_ratio=training.warmup_ratio,
            schedule=training.schedule,
        )
        for group, own in zip(job.optimizer.param_groups, job.groups, strict=True):
            group["lr"] = own.learning_rate * factor
        job.optimizer.step()
        # Gradients overflow before losses do, and after the last step no loss would tell.
        if not torch.nn.utils.get_total_norm(leaves).isfinite():
            raise self._not_finite(f"step {step + 1} made weights that are no numbers")

    def _not_finite(self, what: str) -> TrainingError:
        return TrainingError(
            f"{what}; lower learning_rate (now {self._job.resolved.learning_rate:g}) or look at "
            "the data",
            code="loss_not_finite",
            param="training.learning_rate",
        )

    def _check_gradients(self, *, patient: bool) -> bool:
        """A site that gets no gradient would be a silent no-op.

        A head of zeros, which fits features that tell nothing, passes no gradient on before its own
        first step: where no site at all gets any, the next step is waited for.

        Args:
            patient: Whether there may be none yet.

        Returns:
            Whether every site gets one.

        Raises:
            TrainingError: There is a site that gets none.
        """
        alive: dict[str, bool] = {}
        for name, leaf in self._job.trainable.tensors.items():
            site = name.partition(":")[0]
            moved = leaf.grad is not None and bool(leaf.grad.any())
            alive[site] = alive.get(site, False) or moved
        dead = [site for site, moved in alive.items() if not moved and site != HEAD]
        none_moved = len(dead) == len(alive.keys() - {HEAD})
        if patient and none_moved:
            return not dead
        if dead:
            why = f"{len(dead)} sites get no gradient, the first is {dead[0]}"
            if none_moved:
                why = (
                    "the method gets no gradient at all: its start fits these rows exactly, as it "
                    "may when they are few or all alike; train on more rows"
                )
            raise TrainingError(why, code="no_gradient")
        return True
