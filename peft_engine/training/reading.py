"""From a job and its records to tokens and settings; no forward is computed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.configs.families import check_family
from peft_engine.configs.job import JobSpec
from peft_engine.delta import Delta
from peft_engine.errors import ConfigError, DataError
from peft_engine.parts.batching import Example
from peft_engine.parts.spacing import evenly_spaced
from peft_engine.tasks.protocol import Encoded, HeadTask, NamingTask, Record, Task
from peft_engine.tasks.table import find_task
from peft_engine.training.class_weights import resolve_class_weights
from peft_engine.training.events import Emit, TrainingEvent
from peft_engine.training.idle_options import explain_idle_options
from peft_engine.training.lineage import inherit_spec, merge_labels
from peft_engine.training.resolve import Resolved, resolve, resolve_max_length
from peft_engine.training.settling import settle_methods

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Read:
    """A job whose rows have been read, and whose settings are known but for activations.

    Attributes:
        spec: The job, its methods with their sizes, or with what its parent decides.
        task: The task.
        labels: Class names, if the task has them.
        splits: Encoded splits by name.
        resolved: Settings without any ``auto`` but those of ``settle_activations``.
        class_weights: (C,) how much a target of each class counts, on the CPU.
    """

    spec: JobSpec
    task: Task
    labels: tuple[str, ...] | None
    splits: Mapping[str, Encoded]
    resolved: Resolved
    class_weights: Tensor | None

    @property
    def train(self) -> Sequence[Example]:
        """Training examples."""
        return self.splits["train"].examples


def read_job(
    base: Base,
    spec: JobSpec,
    records: Mapping[str, Sequence[Record]],
    *,
    check: Callable[[], None],
    emit: Emit,
    parent: Delta | None = None,
    most_rows: int | None = None,
) -> Read:
    """Encode and resolve; no forward is computed.

    Args:
        base: The base.
        spec: The job.
        records: Canonical records by split.
        check: Called between the parts; may raise to interrupt.
        emit: Told of rows that were cut, and of entities that no words can name.
        parent: The delta to go on from, if any.
        most_rows: Of a larger split only so many evenly spaced rows are encoded; settings are
            resolved for all of them. None: every row.

    Returns:
        What is known.

    Raises:
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
    taken = {split: _take(records.get(split, ()), most_rows) for split in SPLITS}
    splits = _encode(base, task, taken, labels, max_length, check, emit)
    train = splits["train"].examples
    resolved = resolve(
        spec,
        base,
        task,
        examples=train,
        train_rows=round(len(train) * len(records["train"]) / len(taken["train"])),
        validation_rows=len(records.get("validation", ())),
        max_length=max_length,
    )
    _warn_of_options(spec, task, resolved, emit)
    weights = resolve_class_weights(spec.training.class_weights, task, train, labels)
    return Read(spec, task, labels, splits, resolved, weights)


def _take(records: Sequence[Record], most_rows: int | None) -> Sequence[Record]:
    """All of them, or evenly spaced ones."""
    if most_rows is None or len(records) <= most_rows:
        return records
    return [records[place] for place in evenly_spaced(len(records), most_rows)]


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
