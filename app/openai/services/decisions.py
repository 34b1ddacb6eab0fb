"""Who answers questions, and how they are asked.

A model that writes is given every question in words, and each of its answers is scored. A
classifier or a regression reads the input once, whatever is asked: it knows what it was trained
for, and what is asked must be that.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from app.openai.schemas.decisions import (
    Choice,
    DecisionRequest,
    InputMessage,
    Predicate,
    Question,
    Score,
)
from app.openai.services.questions import ask_in_words, offered_by, read_content
from app.openai.services.targets import as_request
from app.schemas.predictions import PredictRequest
from app.schemas.shared import walk_texts
from app.services.predictions import Planned
from core.errors import BadInput, ServiceError, TooLarge
from core.settings import Settings

WRITING = "text-generation"
CLASSIFYING = "text-classification"
REGRESSION = "regression"

_SHOWN_LABELS = 20
"""Of an adapter's labels in a message."""


def read_request(settings: Settings, body: DecisionRequest) -> PredictRequest:
    """Read who is asked, and about what.

    Args:
        settings: Which bases there are.
        body: The request.

    Returns:
        One row for ``/predict``, from which ``put_questions`` makes those that are sent.
    """
    given: Any = body.input
    if not isinstance(given, str):
        given = {"messages": [{"content": read_content(turn.content)} for turn in given]}
    return as_request(settings, model=body.model, task=WRITING, inputs=[given])


def put_questions(settings: Settings, planned: Planned, body: DecisionRequest) -> Planned:
    """Ask what can be asked of the model that was found.

    Args:
        settings: Limits of one call.
        planned: The row of ``read_request``.
        body: The request.

    Returns:
        Of a model that writes one row a question, of any other one row.

    Raises:
        BadInput: The model answers no questions, or not these.
    """
    row, origin = planned.rows[0], planned.origins[0]
    task = row["task"]
    if task == WRITING:
        rows = [
            {
                **row,
                "input": {"messages": ask_in_words(body.input, question)},
                "options": {"answers": list(offered_by(question))},
            }
            for question in body.questions
        ]
        _check_size(settings, rows)
        return replace(planned, rows=rows, origins=[origin] * len(rows), inputs=len(rows))
    if task not in (CLASSIFYING, REGRESSION):
        raise BadInput(
            f"this adapter was trained for {task}, which answers no questions; ask it by POST "
            "/predict",
            code="task_mismatch",
            param="model",
        )
    for place, question in enumerate(body.questions):
        if task == REGRESSION:
            read_scale(question, place)
        else:
            _check_labels(question, place, _labels_of(planned))
    return replace(planned, rows=[{**row, "input": _one_text(body.input)}])


def explain(error: ServiceError) -> ServiceError:
    """Say what to do about an adapter that reads more than a question's one text.

    Args:
        error: The inference process's.

    Returns:
        The same error, unless it asks for a second text.
    """
    if error.param is None or not error.param.endswith(".text_pair"):
        return error
    return BadInput(
        "this adapter compares two texts, and a question here is about one; ask it by POST "
        "/predict with text and text_pair",
        code="task_mismatch",
        param="model",
    )


def writes(planned: Planned) -> bool:
    """Whether every question has a row of its own.

    Args:
        planned: Of ``put_questions``.

    Returns:
        False where one reading of the input answers all of them.
    """
    return bool(planned.rows[0]["task"] == WRITING)


def read_scale(question: Question, place: int) -> tuple[Score, list[float]]:
    """Read the levels of a score as numbers that a regression can stand between.

    Args:
        question: The question.
        place: Of the question, for errors.

    Returns:
        The question, and one number for each level, rising.

    Raises:
        BadInput: It is no score, or its levels are no such numbers.
    """
    if not isinstance(question, Score):
        raise BadInput(
            f"this adapter gives a number: it answers questions of the type score, not "
            f"{question.type}",
            code="task_mismatch",
            param=f"questions.{place}.type",
        )
    found = [_as_number(level.label) for level in question.levels]
    # what is no number (nan) is above nothing, and nothing above it
    if not all(low < high for low, high in pairwise(found)):
        raise BadInput(
            "this adapter gives a number: the labels of the levels must be numbers that rise, such "
            "as 1, 2, 3",
            param=f"questions.{place}.levels",
        )
    return question, found


def label_of(question: Predicate, labels: Sequence[str]) -> str | None:
    """Find which label of a classifier a statement is about.

    Args:
        question: The statement.
        labels: Those of the adapter.

    Returns:
        What ``instructions`` says, or if that is no label, ``name``; None when neither is one.
    """
    said = (read_content(question.instructions), question.name)
    return next((text for text in said if text in labels), None)


def _check_size(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse more than one call may ask of a model that reads the input for every question.

    Raises:
        BadInput: There are too many questions.
        TooLarge: There is too much to read.
    """
    if len(rows) > settings.max_predict_rows:
        raise BadInput(
            f"{len(rows)} questions in one call; {settings.max_predict_rows} are allowed to a "
            "model that writes, split the call",
            code="too_many_rows",
            param="questions",
        )
    chars = sum(len(text) for row in rows for _, text in walk_texts(row["input"]))
    if chars > settings.max_predict_chars:
        raise TooLarge(
            f"the questions, each with the input, have {chars} characters; "
            f"{settings.max_predict_chars} are allowed in one call, split it",
            param="questions",
        )


def _check_labels(question: Question, place: int, labels: Sequence[str]) -> None:
    """Refuse what a classifier has no label for.

    Raises:
        BadInput: There is something.
    """
    known = ", ".join(labels[:_SHOWN_LABELS]) + (", …" if len(labels) > _SHOWN_LABELS else "")
    if isinstance(question, Predicate):
        if label_of(question, labels) is None:
            raise BadInput(
                "this adapter is a classifier: a predicate asks for one of its labels, which "
                f"instructions or name must be; labels: {known}",
                param=f"questions.{place}.instructions",
            )
        return
    field = "choices.{}.value" if isinstance(question, Choice) else "levels.{}.label"
    for number, text in enumerate(offered_by(question)):
        if text not in labels:
            raise BadInput(
                f"{text!r:.100} is no label of this adapter; labels: {known}",
                param=f"questions.{place}.{field.format(number)}",
            )


def _labels_of(planned: Planned) -> Sequence[str]:
    origin = planned.origins[0]
    return [] if origin is None else origin.labels or []


def _one_text(given: str | Sequence[InputMessage]) -> str:
    """The text that a classifier reads.

    Raises:
        BadInput: It is a conversation.
    """
    if isinstance(given, str):
        return given
    if len(given) > 1 or given[0].role != "user":
        raise BadInput(
            "this adapter reads one text: send input as a text, or as one message of the user",
            param="input",
        )
    return read_content(given[0].content)


def _as_number(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        return math.nan
    return found if math.isfinite(found) else math.nan
