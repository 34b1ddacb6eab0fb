"""The tasks by name."""

from collections.abc import Mapping
from types import MappingProxyType

from peft_engine.tasks.protocol import Task
from peft_engine.tasks.text_classification import TextClassification
from peft_engine.tasks.text_generation import TextGeneration

TASKS: Mapping[str, Task] = MappingProxyType(
    {task.name: task for task in (TextClassification(), TextGeneration())}
)
