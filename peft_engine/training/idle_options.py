"""Options that do nothing, or next to it, for a job's task, method or optimizer."""

from collections.abc import Iterator

from peft_engine.configs.job import JobSpec
from peft_engine.configs.training import TrainingConfig
from peft_engine.methods.table import METHODS
from peft_engine.tasks.protocol import HeadTask, Task
from peft_engine.training.evaluations import writes_texts
from peft_engine.training.resolve import Resolved

_WITHOUT_SMOOTHING = frozenset({"regression", "question-answering"})
"""Tasks whose loss does not read it."""


def explain_idle_options(spec: JobSpec, task: Task, resolved: Resolved) -> Iterator[str]:
    """Say which options do nothing, or next to it.

    Args:
        spec: The job, its methods those that are trained.
        task: Its task.
        resolved: What its ``auto`` came to.

    Yields:
        A sentence for each; defaults and ``auto`` are none that were given.
    """
    training = spec.training
    if training.label_smoothing > 0 and task.name in _WITHOUT_SMOOTHING:
        yield f"label_smoothing does nothing: it does not apply to {task.name}"
    if training.head_learning_rate != "auto" and not isinstance(task, HeadTask):
        yield f"head_learning_rate does nothing: {task.name} has no head"
    if training.learning_rate != "auto" and all(own.type == "head-only" for own in spec.method):
        yield "learning_rate does nothing: head-only trains the head, at head_learning_rate"
    if training.optimizer == "sgd" and training.learning_rate == "auto":
        yield "learning_rate auto is measured for adamw and hardly moves sgd: give one"
    if training.weight_decay not in ("auto", 0) and not _has_decay(spec):
        yield f"weight_decay does nothing: no tensor of {_names(spec)} decays"
    yield from _explain_run(training, resolved)
    if not writes_texts(task):
        yield from _explain_answers(training, task)


def _explain_run(training: TrainingConfig, resolved: Resolved) -> Iterator[str]:
    """Of what ends a run."""
    if training.max_steps is not None and training.max_steps > resolved.total_steps:
        passes = f"{resolved.epochs:g} epochs are {resolved.total_steps} steps"
        yield f"max_steps does nothing: {passes}; give epochs for a longer run"
    stopping = training.early_stopping
    if stopping is not None and resolved.keep == "last":
        for name, given in (
            ("patience", stopping.patience != "auto"),
            ("min_delta", stopping.min_delta > 0),
        ):
            if given:
                yield f"early_stopping.{name} does nothing: the last step is kept, whatever it is"


def _explain_answers(training: TrainingConfig, task: Task) -> Iterator[str]:
    """Of the rows that are answered in full."""
    default = TrainingConfig().eval_generate_rows
    for name, given in (
        ("eval_generate_rows", training.eval_generate_rows not in (0, default)),
        ("validation_generate_rows", training.validation_generate_rows not in ("auto", 0)),
    ):
        if given:
            yield f"{name} does nothing: {task.name} writes no texts"


def _has_decay(spec: JobSpec) -> bool:
    return any(
        group.decay for config in spec.method for group in METHODS[config.type].groups(config)
    )


def _names(spec: JobSpec) -> str:
    return ", ".join(config.type for config in spec.method)
