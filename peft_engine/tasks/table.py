"""The tasks by name, and their heads by kind."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from peft_engine.tasks.multi_label import MultiLabelClassification
from peft_engine.tasks.multiple_choice import MultipleChoice
from peft_engine.tasks.protocol import HeadTask, Record, Task
from peft_engine.tasks.question_answering import QuestionAnswering
from peft_engine.tasks.regression import Regression
from peft_engine.tasks.relation_extraction import RelationExtraction
from peft_engine.tasks.text_classification import TextClassification
from peft_engine.tasks.text_generation import TextGeneration
from peft_engine.tasks.token_classification import TokenClassification

_HEAD_TASKS: tuple[HeadTask, ...] = (
    TextClassification(),
    MultiLabelClassification(),
    Regression(),
    TokenClassification(),
    RelationExtraction(),
    QuestionAnswering(),
    MultipleChoice(),
)

HEAD_TASKS: Mapping[str, HeadTask] = MappingProxyType({task.kind: task for task in _HEAD_TASKS})
"""The task that reads a head, by the kind of its specification."""

_MULTI_LABEL = HEAD_TASKS["multi-label"]
_ALL: tuple[Task, ...] = (*_HEAD_TASKS, TextGeneration())

TASKS: Mapping[str, Task] = MappingProxyType(
    {task.name: task for task in _ALL if task is not _MULTI_LABEL}
)
"""The task of a name; of one with variants the most common."""


def find_task(name: str, records: Sequence[Record]) -> Task:
    """The task of a data set.

    Args:
        name: A key of ``TASKS``.
        records: Training records; their form decides between variants of one name.

    Returns:
        The task: with several labels a row, its multi-label variant.
    """
    if name == TextClassification.name and any("labels" in record for record in records):
        return _MULTI_LABEL
    return TASKS[name]
