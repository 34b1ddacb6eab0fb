"""A checkpoint: everything that decides the rest of a run, as a delta and a state beside it.

The delta is what the steps so far have made: it can be served and published like any other. The
state is what only training needs (moments, the best step, random numbers), in one safetensors file
that names its delta. Together they are no larger than one file of both.

Resuming from any checkpoint gives the same delta, byte for byte, as a run that was never disturbed
(on the same kind of device with the same number of threads).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from peft_engine.delta import Delta
from peft_engine.training.trainable import Trainable

_METADATA_KEY = "tunery"
_DELTA = "delta"
"""Beside the fields of ``Progress``: the digest of the delta that the state belongs to."""
_DROPOUT = "random/dropout"


@dataclass
class Progress:
    """Where a run stands. Mutable: the loop's own note of itself.

    Attributes:
        run: Digest of everything that a checkpoint must agree with.
        step: Optimizer steps done.
        tokens: Real tokens seen.
        loss_sum: Sum of training losses since the last evaluation.
        loss_count: Number of targets in it, or the sum of their weights.
        train_loss: Mean training loss before the last evaluation.
        evaluated_step: Step of the last evaluation; -1: none.
        best_step: Step whose values are kept; -1: none.
        best_metrics: Its evaluation.
        top_step: Step of the best evaluation, which may be an earlier one; -1: none.
        top_metrics: That evaluation.
        top_draws: Its deciding metric over resamples of the rows.
        best_trained_metrics: The best evaluation, the start left aside.
        initial_metrics: Metrics before the first step.
        evaluations_without_gain: In a row.
        stopped_early: Whether patience ran out.
        proven: Whether a step has shown that every site gets a gradient.
    """

    run: str
    step: int = 0
    tokens: int = 0
    loss_sum: float = 0.0
    loss_count: float = 0.0
    train_loss: float | None = None
    evaluated_step: int = -1
    best_step: int = -1
    best_metrics: dict[str, float] = field(default_factory=dict)
    top_step: int = -1
    top_metrics: dict[str, float] = field(default_factory=dict)
    top_draws: list[float] = field(default_factory=list)
    best_trained_metrics: dict[str, float] = field(default_factory=dict)
    initial_metrics: dict[str, float] = field(default_factory=dict)
    evaluations_without_gain: int = 0
    stopped_early: bool = False
    proven: bool = False


def pack_state(
    progress: Progress,
    delta: Delta,
    optimizer: torch.optim.Optimizer,
    best: Mapping[str, Tensor] | None,
    *,
    dropout: Sequence[Tensor],
) -> bytes:
    """Write the state of a checkpoint.

    Args:
        progress: Where the run stands.
        delta: The parameters and choices at that step, kept beside the state.
        optimizer: Its moments.
        best: Values of the step that is kept, if there has been an evaluation.
        dropout: State of the dropout generator of each process of the run.

    Returns:
        A safetensors file.
    """
    tensors = {f"best/{name}": tensor for name, tensor in (best or {}).items()}
    tensors |= {_dropout_name(rank): state for rank, state in enumerate(dropout)}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
    on_cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    told = {**asdict(progress), _DELTA: delta.digest}
    return save_tensors(on_cpu, metadata={_METADATA_KEY: json.dumps(told)})


def unpack_checkpoint(
    state: bytes,
    delta: Delta | None,
    *,
    run: str,
    trainable: Trainable,
    optimizer: torch.optim.Optimizer,
    rank: int = 0,
) -> tuple[Progress, dict[str, Tensor] | None] | None:
    """Put a run back to where it stood.

    Args:
        state: What ``pack_state`` wrote.
        delta: What was kept beside it; None for the state of an earlier version, which holds it.
        run: Digest of this run.
        trainable: Parameters to fill.
        optimizer: Moments to fill.
        rank: Number of this process of the run.

    Returns:
        The progress and the values of the best step; None when the checkpoint belongs to another
        run, or the delta to another state, so that nothing was changed.
    """
    length = int.from_bytes(state[:8], "little")
    header = json.loads(state[8 : 8 + length])
    told = json.loads(header["__metadata__"][_METADATA_KEY])
    belongs = told.pop(_DELTA, None)
    progress = Progress(**told)
    if progress.run != run or belongs != (None if delta is None else delta.digest):
        return None
    tensors = load_tensors(state)
    values = _values_of(tensors) if delta is None else delta.tensors
    trainable.restore(values)
    for name, tensor in trainable.fixed.items():
        tensor.copy_(values[name])
    trainable.dropout.set_state(tensors[_dropout_name(rank)])
    _restore_optimizer(optimizer, tensors)
    best = {
        name: tensors[f"best/{name}"].to(tensor.device)
        for name, tensor in trainable.tensors.items()
        if f"best/{name}" in tensors
    }
    return progress, best or None


def _values_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Trained values and choices out of the state of an earlier version."""
    return {
        name.partition("/")[2]: tensor
        for name, tensor in tensors.items()
        if name.startswith(("now/", "fixed/"))
    }


def _dropout_name(rank: int) -> str:
    return _DROPOUT if rank == 0 else f"{_DROPOUT}/{rank}"


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for full_name, tensor in tensors.items():
        kind, _, rest = full_name.partition("/")
        if kind == "optimizer":
            index, _, name = rest.partition("/")
            state.setdefault(int(index), {})[name] = tensor
    whole = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
