"""From a job and its records to everything that the first step needs."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.configs.families import check_family
from peft_engine.configs.job import JobSpec
from peft_engine.delta import Delta
from peft_engine.errors import ConfigError, DataError
from peft_engine.parts.batching import Example
from peft_engine.router import Router
from peft_engine.tasks.protocol import Encoded, Head, HeadTask, NamingTask, Record, Task
from peft_engine.tasks.table import find_task
from peft_engine.training.activations import settle_activations
from peft_engine.training.choosing import choose_by_data
from peft_engine.training.class_weights import resolve_class_weights
from peft_engine.training.events import Emit, TrainingEvent
from peft_engine.training.frozen_layers import FrozenLayers
from peft_engine.training.head_start import FeatureStore, FrozenBase
from peft_engine.training.idle_options import explain_idle_options
from peft_engine.training.lineage import continue_from, inherit_spec, merge_labels
from peft_engine.training.resolve import Resolved, resolve, resolve_max_length
from peft_engine.training.settling import settle_methods
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

SPLITS = ("train", "validation", "test")
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
    """
    if parent is not None:
        spec = inherit_spec(spec, base, parent)
    name = _check_task(spec, base)
    if not records.get("train"):
        raise DataError("the training split is empty", code="too_few_rows", param="dataset_id")
    if not spec.evaluate_test:
        records = {**records, "test": ()}
    task = find_task(name, records["train"])
    labels = task.find_labels(records["train"])
    if parent is not None:
        labels = merge_labels(task, parent, labels)
    else:
        methods = settle_methods(base, spec.method, has_head=isinstance(task, HeadTask))
        spec = spec.model_copy(update={"method": methods})
    max_length = resolve_max_length(spec, base, task)
    splits = _encode(base, task, records, labels, max_length, check, emit)
    train = splits["train"].examples
    resolved = resolve(
        spec,
        base,
        task,
        examples=train,
        validation_rows=len(splits["validation"].records),
        max_length=max_length,
    )
    _warn_of_options(spec, task, resolved, emit)
    weights = resolve_class_weights(spec.training.class_weights, task, train, labels)
    seed, head = spec.training.seed, None
    if parent is not None:
        trainable = continue_from(
            base, router, parent, task, train, labels=labels, seed=seed, check=check
        )
    else:
        if isinstance(task, HeadTask):
            head = FrozenBase(base, features, check).first_head(task, train, labels=labels)
            if weights is not None or resolved.metric in ACCURACIES:
                head = head.decide_by_likeliest()
            if (why := head.explain_decisions()) is not None:
                emit(TrainingEvent("log", {"level": "info", "message": why}))
        trainable = create_trainable(base, spec.method, seed=seed, head=head)
        choose_by_data(base, router, task, trainable, train, seed=seed, check=check)
    if not trainable.tensors:
        raise ConfigError(
            f"head-only trains nothing: {task.name} has no head; use another method",
            code="task_not_supported",
            param="method",
        )
    resolved, frozen = settle_activations(base, spec, trainable, resolved, splits, check)
    groups = parameter_groups(
        trainable,
        learning_rates=resolved.method_learning_rates,
        head_learning_rate=resolved.head_learning_rate,
        weight_decay=resolved.weight_decay,
    )
    return Prepared(
        task,
        splits,
        resolved,
        trainable,
        head,
        None if parent is None else trainable.snapshot(),
        _describe_start(trainable, parent),
        None if weights is None else weights.to(base.device),
        groups,
        _make_optimizer(spec, trainable, groups, device=base.device),
        frozen,
        _digest(base, spec, resolved, splits, parent),
    )


def _encode(
    base: Base,
    task: Task,
    records: Mapping[str, Sequence[Record]],
    labels: tuple[str, ...] | None,
    max_length: int,
    check: Callable[[], None],
    emit: Emit,
) -> dict[str, Encoded]:
    """Every split as tokens; what cannot be learned of it is told."""
    splits = {}
    for name in SPLITS:
        own = records.get(name, ())
        encoded = task.encode(base, own, labels=labels, max_length=max_length)
        _report_cuts(name, encoded, max_length, emit)
        if isinstance(task, NamingTask) and labels is not None:
            _report_unnamed(name, *task.count_unnamed(encoded, own, labels=labels), emit)
        splits[name] = Encoded(own, encoded if name != "train" else _learnable(task, encoded, emit))
        check()
    return splits


def _learnable(task: Task, examples: Sequence[Example], emit: Emit) -> Sequence[Example]:
    """Without the rows that come to no word: a batch of them alone would have no loss.

    Raises:
        DataError: None is left.
    """
    if not isinstance(task, HeadTask):
        return examples
    kept = [example for example in examples if task.count_features(example)]
    if not kept:
        raise DataError(
            "no row of train has a word that the base's tokenizer keeps",
            code="nothing_to_learn",
            param="dataset_id",
        )
    if left_out := len(examples) - len(kept):
        message = f"{left_out} rows of train have no word that the base's tokenizer keeps: left out"
        emit(TrainingEvent("log", {"level": "warning", "message": message}))
    return kept


def _warn_of_options(spec: JobSpec, task: Task, resolved: Resolved, emit: Emit) -> None:
    for message in explain_idle_options(spec, task, resolved):
        emit(TrainingEvent("log", {"level": "warning", "message": message}))


def _check_task(spec: JobSpec, base: Base) -> str:
    if spec.task is None:
        raise ConfigError("the job names no task", code="task_missing", param="task")
    check_family(spec.task, base.architecture, base=base.name)
    return spec.task


def _describe_start(trainable: Trainable, parent: Delta | None) -> str:
    if parent is None:
        return START_UNTUNED if trainable.head_spec is None else START_FROZEN_HEAD
    grown = (trainable.labels or ()) != (parent.manifest.labels or ())
    return START_GROWN if grown else START_PARENT


def _report_cuts(name: str, examples: Sequence[Example], max_length: int, emit: Emit) -> None:
    cut = len({example.record for example in examples if example.cut_tokens})
    if cut:
        message = f"{cut} rows of {name} were cut to {max_length} tokens"
        emit(TrainingEvent("log", {"level": "warning", "message": message}))


def _report_unnamed(name: str, unnamed: int, total: int, emit: Emit) -> None:
    if unnamed:
        message = (
            f"{unnamed} of {total} entities of {name} begin or end inside a word or on a blank: "
            "they cannot be learned and count as missed"
        )
        emit(TrainingEvent("log", {"level": "warning", "message": message}))


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
