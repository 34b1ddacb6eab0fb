"""The tasks by name, and their heads by kind."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from peft_engine.tasks.protocol import HeadTask, Record, Task
from peft_engine.tasks.text_classification import TextClassification
from peft_engine.tasks.text_generation import TextGeneration

TASKS: Mapping[str, Task] = MappingProxyType(
    {task.name: task for task in (TextClassification(), TextGeneration())}
)

HEAD_TASKS: Mapping[str, HeadTask] = MappingProxyType(
    {task.kind: task for task in TASKS.values() if isinstance(task, HeadTask)}
)
"""The task that reads a head, by the kind of its specification."""


def find_task(name: str, records: Sequence[Record]) -> Task:  # noqa: ARG001
    """The task of a data set.

    Args:
        name: A key of ``TASKS``.
        records: Training records; their form may decide between variants of one name.

    Returns:
        The task.
    """
    return TASKS[name]
