"""The record of each task, one file each; names as in the HTTP contract."""

from collections.abc import Mapping

from peft_engine.records.schema import TaskSchema
from peft_engine.records.tasks.text_classification import TextClassification
from peft_engine.records.tasks.text_generation import TextGeneration

TASKS: Mapping[str, TaskSchema] = {
    schema.name: schema for schema in (TextClassification(), TextGeneration())
}
