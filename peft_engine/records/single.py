"""One row or one file at a time: for previews and for checking what a prediction is asked."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peft_engine.records.options import Limits, SourceFile
from peft_engine.records.problems import NoticeList, Problem, ProblemList
from peft_engine.records.reading import FileReading
from peft_engine.records.row_check import RowCheck
from peft_engine.records.row_reader import Shape
from peft_engine.records.schema import Form, Record
from peft_engine.records.tasks import TASKS


def check_record(
    task: str, row: Mapping[str, Any], *, labelled: bool = True
) -> tuple[Record | None, list[Problem]]:
    """Validate one row.

    Args:
        task: A name of ``TASKS``.
        row: The row.
        labelled: False for an input of a prediction, which has nothing to learn from.

    Returns:
        The canonical record and no problems; or None and every problem of the row.
    """
    schema, problems = TASKS[task], ProblemList()
    check = RowCheck(problems, NoticeList(), labelled=labelled)
    prepared = schema.prepare(row, check)
    form = _best_form(prepared, schema.forms, labelled)
    record = schema.read(prepared, form, check)
    return (None if check.failed else record), problems.listed


def _best_form(row: Mapping[str, Any], forms: tuple[Form, ...], labelled: bool) -> Form:
    """The form that lacks fewest fields; the first one of several."""

    def lacks(form: Form) -> tuple[int, int]:
        needed = form.required if labelled else form.inputs
        has = sum(row.get(name) is not None for name in needed)
        return len(needed) - has, -has

    return min(forms, key=lacks)


def read_upload(
    source: Path | SourceFile,
    *,
    problems: ProblemList,
    task: str | None = None,
    format: str | None = None,
    mapping: Mapping[str, str] | None = None,
    limits: Limits | None = None,
) -> Iterator[tuple[int, Record]]:
    """Read one file as canonical records, without checks of the whole set.

    Args:
        source: The file.
        problems: Where problems go.
        task: A name of ``TASKS``; None: told from the first rows.
        format: Stated format; None: told from the content.
        mapping: ``{our field: their column}``.
        limits: Bounds.

    Yields:
        Physical line and canonical record of each accepted row.
    """
    file = source if isinstance(source, SourceFile) else SourceFile(source, source.name)
    reading = FileReading(
        file,
        "all",
        Shape(TASKS[task] if task else None),
        problems,
        NoticeList(),
        limits or Limits(),
        format,
        dict(mapping or {}),
    )
    for read in reading.rows():
        yield read.line, read.record
