"""The record of each task, one file each; names as in the HTTP contract."""

from collections.abc import Mapping

from peft_engine.records.schema import TaskSchema
from peft_engine.records.tasks.multiple_choice import MultipleChoice
from peft_engine.records.tasks.question_answering import QuestionAnswering
from peft_engine.records.tasks.regression import Regression
from peft_engine.records.tasks.relation_extraction import RelationExtraction
from peft_engine.records.tasks.text_classification import TextClassification
from peft_engine.records.tasks.text_generation import TextGeneration
from peft_engine.records.tasks.token_classification import TokenClassification

TASKS: Mapping[str, TaskSchema] = {
    schema.name: schema
    for schema in (
        TextClassification(),
        Regression(),
        TokenClassification(),
        RelationExtraction(),
        QuestionAnswering(),
        MultipleChoice(),
        TextGeneration(),
    )
}
