"""Reading and validating data sets. Loads no torch; knows no HTTP, database or storage."""

from peft_engine.records.build import BuildCancelled, build_dataset, read_canonical
from peft_engine.records.detection import detect_task
from peft_engine.records.options import Limits, SourceFile, SplitSpec, TokenMeasure
from peft_engine.records.problems import Notice, Problem, ProblemList
from peft_engine.records.report import DatasetReport, SplitReport
from peft_engine.records.single import check_record, read_upload
from peft_engine.records.tasks import TASKS

__all__ = [
    "TASKS",
    "BuildCancelled",
    "DatasetReport",
    "Limits",
    "Notice",
    "Problem",
    "ProblemList",
    "SourceFile",
    "SplitReport",
    "SplitSpec",
    "TokenMeasure",
    "build_dataset",
    "check_record",
    "detect_task",
    "read_canonical",
    "read_upload",
]
