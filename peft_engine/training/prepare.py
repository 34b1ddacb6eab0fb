"""From a job and its records to everything that the first step needs."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.configs.job import JobSpec
from peft_engine.delta import Delta
from peft_engine.errors import ConfigError
from peft_engine.parts.batching import Example
from peft_engine.router import Router
from peft_engine.tasks.protocol import Encoded, Head, HeadTask, Record, Task
from peft_engine.training.activations import settle_activations
from peft_engine.training.choosing import choose_by_data
from peft_engine.training.events import Emit, TrainingEvent
from peft_engine.training.frozen_layers import FrozenLayers
from peft_engine.training.head_start import FeatureStore, FrozenBase
from peft_engine.training.lineage import continue_from
from peft_engine.training.reading import Read, read_job
from peft_engine.training.resolve import Resolved
from peft_engine.training.trainable import (
    ParameterGroup,
    Trainable,
    create_trainable,
    parameter_groups,
)

EVALUATION_ROWS = 32
"""Fills the products of a forward without gradients; more rows gain little and take memory."""

START_UNTUNED = "the untuned base"
START_FROZEN_HEAD = "the frozen head"
START_PARENT = "the parent adapter"
START_GROWN = "the parent adapter, its head grown for labels that it did not know"

ACCURACIES = frozenset({"accuracy", "subset_accuracy"})
"""Metrics that the likeliest decision is best for. The others are F1, its parts, or do not depend
on what is decided."""


@dataclass(frozen=True)
class Prepared:
    """A job that is ready to train.

    Attributes:
        task: The task.
        splits: Encoded splits by name.
        resolved: Settings without any ``auto``.
        trainable: Parameters with zero effect on the base.
        first_head: The head that fits the frozen features best and that training starts from, on
            the CPU; None without a head, and for a job that continues from a parent.
        start: The parent's parameters, for a job that continues from one: what it is compared with.
        start_is: What training starts from, in words.
        class_weights: (C,) how much a target of each class counts, on the device of the base.
        groups: How the optimizer treats them.
        optimizer: Over the same groups, in the same order.
        frozen_layers: The layers below the lowest trained one, where their activations are reused.
        digest: What a checkpoint must agree with.
    """

    task: Task
    splits: Mapping[str, Encoded]
    resolved: Resolved
    trainable: Trainable
    first_head: Head | None
    start: Trainable | None
    start_is: str
    class_weights: Tensor | None
    groups: Sequence[ParameterGroup]
    optimizer: torch.optim.Optimizer
    frozen_layers: FrozenLayers | None
    digest: str

    @property
    def evaluation_rows(self) -> int:
        """Rows of one forward without gradients: never the job's own wish.

        Sums over another number of rows round otherwise, and what is evaluated twice, such as a
        parent's end and its child's start, must come out the same.
        """
        return EVALUATION_ROWS


def prepare(
    base: Base,
    spec: JobSpec,
    records: Mapping[str, Sequence[Record]],
    *,
    router: Router,
    features: FeatureStore,
    check: Callable[[], None],
    emit: Emit,
    parent: Delta | None = None,
) -> Prepared:
    """Encode, resolve, and make the parameters.

    Args:
        base: The base.
        spec: The job.
        records: Canonical records by split.
        router: Router of the base.
        features: Frozen features of earlier jobs.
        check: Called between the parts; may raise to interrupt.
        emit: Told of rows that were cut, and of entities that no words can name.
        parent: The delta to go on from, if any.

    Returns:
        The prepared job.

    Raises:
        ConfigError: Nothing would be trained.
        DataError: The training split is empty, or nothing in it can be learned.
    """  # noqa: DOC502  raised below
    read = read_job(base, spec, records, check=check, emit=emit, parent=parent)
    head = None
    if parent is None:
        head = start_head(FrozenBase(base, features, check), read, read.train, emit=emit)
    return make_ready(base, read, router=router, head=head, check=check, parent=parent)


def start_head(
    frozen: FrozenBase, read: Read, examples: Sequence[Example], *, emit: Emit
) -> Head | None:
    """The head that fits the frozen features best.

    Args:
        frozen: The plain base.
        read: The job.
        examples: Training examples to fit it on.
        emit: Told how it decides, where that is not plain.

    Returns:
        The head, on the CPU; None for a task without one.
    """
    if not isinstance(read.task, HeadTask):
        return None
    head = frozen.first_head(read.task, examples, labels=read.labels)
    if read.class_weights is not None or read.resolved.metric in ACCURACIES:
        head = head.decide_by_likeliest()
    if (why := head.explain_decisions()) is not None:
        emit(TrainingEvent("log", {"level": "info", "message": why}))
    return head


def make_ready(
    base: Base,
    read: Read,
    *,
    router: Router,
    head: Head | None,
    check: Callable[[], None],
    parent: Delta | None = None,
) -> Prepared:
    """Make the parameters.

    Args:
        base: The base.
        read: The job.
        router: Router of the base.
        head: What ``start_head`` gave; None for a job that goes on from a parent.
        check: Called between the parts; may raise to interrupt.
        parent: The delta to go on from, if any.

    Returns:
        The prepared job.

    Raises:
        ConfigError: Nothing would be trained.
    """
    spec, task, train = read.spec, read.task, read.train
    seed, weights = spec.training.seed, read.class_weights
    if parent is not None:
        trainable = continue_from(
            base, router, parent, task, train, labels=read.labels, seed=seed, check=check
        )
    else:
        trainable = create_trainable(base, spec.method, seed=seed, head=head)
        choose_by_data(base, router, task, trainable, train, seed=seed, check=check)
    if not trainable.tensors:
        raise ConfigError(
            f"head-only trains nothing: {task.name} has no head; use another method",
            code="task_not_supported",
            param="method",
        )
    resolved, frozen = settle_activations(base, spec, trainable, read.resolved, read.splits, check)
    groups = parameter_groups(
        trainable,
        learning_rates=resolved.method_learning_rates,
        head_learning_rate=resolved.head_learning_rate,
        weight_decay=resolved.weight_decay,
    )
    return Prepared(
        task,
        read.splits,
        resolved,
        trainable,
        head,
        None if parent is None else trainable.snapshot(),
        _describe_start(trainable, parent),
        None if weights is None else weights.to(base.device),
        groups,
        _make_optimizer(spec, trainable, groups, device=base.device),
        frozen,
        _digest(base, spec, resolved, read.splits, parent),
    )


def _describe_start(trainable: Trainable, parent: Delta | None) -> str:
    if parent is None:
        return START_UNTUNED if trainable.head_spec is None else START_FROZEN_HEAD
    grown = (trainable.labels or ()) != (parent.manifest.labels or ())
    return START_GROWN if grown else START_PARENT


def _make_optimizer(
    spec: JobSpec,
    trainable: Trainable,
    groups: Sequence[ParameterGroup],
    *,
    device: torch.device,
) -> torch.optim.Optimizer:
    own = [
        {
            "params": [trainable.tensors[name] for name in group.names],
            "lr": group.learning_rate,
            "weight_decay": group.weight_decay,
        }
        for group in groups
    ]
    if spec.training.optimizer == "sgd":
        return torch.optim.SGD(own, momentum=0.9)
    # On CUDA a few kernels for hundreds of small tensors; torch's own choice loops over them on the
    # CPU. Elsewhere that choice stays: its last bits are those by which deltas are known.
    return torch.optim.AdamW(own, fused=True if device.type == "cuda" else None)


def _digest(
    base: Base,
    spec: JobSpec,
    resolved: Resolved,
    splits: Mapping[str, Encoded],
    parent: Delta | None,
) -> str:
    """The same base, parent, settings and tokens."""
    # how many processes take the steps is told beside it
    left_out = dict.fromkeys(("metadata", "adapter_name", "auto_start", "evaluate_test"), True)
    own = spec.model_dump(mode="json", exclude=left_out | {"training": {"devices"}})
    digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode())
    digest.update(json.dumps(resolved.as_json(), sort_keys=True).encode())
    digest.update(f"{base.fingerprint}{base.template_digest}".encode())
    digest.update(f"{None if parent is None else parent.digest}".encode())
    for split in splits.values():
        for example in split.examples:
            digest.update(f"{example.rows}{example.target}{example.layout}".encode())
    return digest.hexdigest()
