"""Movement pruning: which weights go is learned, beside a delta that is thrown away afterwards.

Every weight has a score. A forward uses the weights with the highest scores of each matrix; the
gradient of a score is that of its weight's presence, whether it is present or not, so that weights
which training moves away from zero are kept and those which it moves towards zero go. The job then
trains a delta of its own on the base that comes out, as after any other pruning.

Source: Sanh, Wolf and Rush 2020, arXiv 2005.07683, equations 5 and 6 (straight-through scores), and
the cubic schedule of Zhu and Gupta 2017, arXiv 1710.01878.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from peft_engine.bases.base import Base
from peft_engine.bases.layers import answering
from peft_engine.compression.pruning import Calibration, PruningPlan, keep_highest, pack_mask
from peft_engine.compression.watch import UNWATCHED, Watch
from peft_engine.configs.job import JobSpec
from peft_engine.configs.pruning import PruningConfig
from peft_engine.parts.batching import Example
from peft_engine.parts.sites import bias_of, linear_sites, weight_of
from peft_engine.router import Router
from peft_engine.tasks.protocol import Record
from peft_engine.training.batches import StepBatches
from peft_engine.training.head_start import FeatureStore
from peft_engine.training.parallel import Solo
from peft_engine.training.prepare import prepare
from peft_engine.training.schedule import rate_factor
from peft_engine.training.step import Stepper

# Legend of axes: O output width, I input width.

_SCORE_RATE = 1e-2
"""Of the paper, appendix A."""
_DENSE_SHARE, _FINAL_SHARE = 0.1, 0.3
"""Shares of the steps before any weight goes, for scores start equal, and after the last has gone,
so that scores settle among the weights that are left."""


def movement_rows(examples: Sequence[Example], spec: JobSpec) -> Calibration:
    """Everything that the choice is learned from: all rows, what they teach, and how.

    Args:
        examples: The encoded training split.
        spec: The job; its method and training decide too.

    Returns:
        Rows whose digest names the choice.
    """
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.target}{example.layout}".encode())
    asked = spec.model_dump(mode="json", include={"task", "method", "training"})
    digest.update(json.dumps(asked, sort_keys=True).encode())
    return Calibration([row for e in examples for row in e.rows], also=digest.hexdigest())


def choose_by_movement(
    base: Base,
    spec: JobSpec,
    records: Mapping[str, Sequence[Record]],
    config: PruningConfig,
    *,
    watch: Watch = UNWATCHED,
) -> PruningPlan:
    """Learn which weights go.

    Args:
        base: The base as published, with no router but the one made here; its weights stay.
        spec: The job, whose method learns beside the scores.
        records: Canonical records; those of ``train`` are learned from.
        config: Sparsity.
        watch: Told of each step, and asked between batches.

    Returns:
        Masks of every linear of the layers.

    Raises:
        ConfigError: The job does not fit the base or the task.
        DataError: The training split is empty.
        TrainingError: The loss is not a number.
    """  # noqa: DOC502  raised below
    # Activations of frozen layers change with the mask.
    training = spec.training.model_copy(update={"reuse_frozen_layers": False})
    spec = spec.model_copy(update={"training": training})
    router, world = Router(base.trunk), Solo()
    job = prepare(
        base,
        spec,
        {"train": records.get("train", ())},
        router=router,
        features=FeatureStore(),
        check=watch.check,
        emit=lambda _: None,
    )
    paths = [site.path for site in linear_sites(base.trunk)]
    linears = {path: base.trunk.get_submodule(path) for path in paths}
    scores = {
        path: torch.zeros_like(weight_of(module), dtype=torch.float32, requires_grad=True)
        for path, module in linears.items()
    }
    optimizer = torch.optim.Adam(scores.values(), lr=_SCORE_RATE)
    stepper = Stepper(base, router, job, spec, world)
    batches = StepBatches(base, job, spec.training.seed, world)
    total = job.resolved.total_steps
    for step in range(total):
        watch.part("steps of movement pruning taken", step, total)
        gone = config.sparsity * _share_gone(step, total)
        answers = {module: _masked(module, scores[path], gone) for path, module in linears.items()}
        with answering(answers):
            count = _take(stepper, step, batches, watch.check)
        for tensor in scores.values():
            if tensor.grad is not None:
                tensor.grad /= count
        optimizer.param_groups[0]["lr"] = _SCORE_RATE * rate_factor(
            step, total_steps=total, warmup_ratio=spec.training.warmup_ratio, schedule="linear"
        )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    masks = {
        path: keep_highest(own.detach().cpu(), config.sparsity) for path, own in scores.items()
    }
    return PruningPlan({f"mask:{path}": pack_mask(kept) for path, kept in masks.items()})


def _take(stepper: Stepper, step: int, batches: StepBatches, check: Callable[[], None]) -> float:
    """One step of the delta, alone; the number of its targets. Scores keep their gradients."""
    asked = stepper.take(step, batches.of_step(step), check)
    try:
        share = next(asked)
        while True:
            share = asked.send(share.alone())
    except StopIteration as end:
        return float(end.value.count)


def _share_gone(step: int, total: int) -> float:
    """Share of the final sparsity that a step is taken at, from 0 to 1."""
    first, last = _DENSE_SHARE * total, (1 - _FINAL_SHARE) * total
    done = min(1.0, max(0.0, (step - first) / max(last - first, 1.0)))
    return 1 - (1 - done) ** 3


def _masked(module: nn.Module, scores: Tensor, gone: float) -> Callable[[Tensor], Tensor]:
    """A linear that uses only the weights with the highest scores."""

    def answer(x: Tensor) -> Tensor:
        weight, bias = weight_of(module), bias_of(module)  # (O, I), (O,)
        mask: Tensor = _Presence.apply(scores, gone)  # type: ignore[no-untyped-call]
        return linear(x, weight * mask.to(weight.dtype), bias)

    return answer


class _Presence(torch.autograd.Function):
    """Ones for the highest scores, and a gradient as if it were the scores themselves."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, gone: float) -> Tensor:  # noqa: ARG004
        """(O, I) to (O, I)."""
        count = round(gone * scores.numel())
        if count == 0:
            return torch.ones_like(scores)
        threshold = scores.flatten().kthvalue(count).values
        return (scores > threshold).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        """Passed straight through."""
        return gradient, None
