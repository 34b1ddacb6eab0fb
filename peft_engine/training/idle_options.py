"""Options that do nothing, or next to it, for a job's task, method or optimizer."""

from collections.abc import Iterator

from peft_engine.configs.job import JobSpec
from peft_engine.tasks.protocol import HeadTask, Task

_WITHOUT_SMOOTHING = frozenset({"regression", "question-answering"})
"""Tasks whose loss does not read it."""


def explain_idle_options(spec: JobSpec, task: Task) -> Iterator[str]:
    """Say which options do nothing, or next to it.

    Args:
        spec: The job, its methods those that are trained.
        task: Its task.

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
