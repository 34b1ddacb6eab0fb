"""What models gave, as answers to questions."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from app.openai.schemas.decision_answers import (
    AnyAnswer,
    ChoiceAnswer,
    ChoiceProbability,
    Decision,
    DecisionUsage,
    LevelProbability,
    PredicateAnswer,
    ScoreAnswer,
)
from app.openai.schemas.decisions import Choice, DecisionRequest, Predicate, Question, Score
from app.openai.services.decisions import label_of, read_scale, writes
from app.openai.services.questions import offered_by
from app.openai.services.targets import name_of, receipt_of
from app.services.predictions import Planned
from core.errors import BadInput


def as_decision(body: DecisionRequest, planned: Planned, found: dict[str, Any]) -> Decision:
    """Shape what came out.

    Args:
        body: The request.
        planned: Its rows, of ``put_questions``.
        found: ``outputs``, ``receipts`` and ``usage``.

    Returns:
        The answer.
    """
    outputs: list[dict[str, Any]] = found["outputs"]
    if writes(planned):
        pairs = zip(body.questions, outputs, strict=True)
        answers = [_of_writer(question, output) for question, output in pairs]
    else:
        answers = [
            _of_regression(question, place, outputs[0])
            if "value" in outputs[0]
            else _of_classifier(question, place, outputs[0])
            for place, question in enumerate(body.questions)
        ]
    tokens = int(found["usage"]["input_tokens"])
    return Decision(
        model=name_of(planned),
        answers=answers,
        usage=DecisionUsage(input_tokens=tokens, total_tokens=tokens),
        x_receipt=receipt_of(planned, found["receipts"][0]),
    )


def _of_writer(question: Question, output: Mapping[str, Any]) -> AnyAnswer:
    """By the probability with which the model would write each answer."""
    scores: list[float] = output["log_likelihoods"]
    highest = max(scores)
    # relative to the likeliest: whole sentences are so unlikely that their exponential is 0
    shares = _to_one([math.exp(score - highest) for score in scores])
    coverage = min(1.0, math.fsum(map(math.exp, scores)))
    if isinstance(question, Predicate):
        return PredicateAnswer(name=question.name, probability=shares[0], x_coverage=coverage)
    return _among(question, shares, coverage)


def _of_classifier(question: Question, place: int, output: Mapping[str, Any]) -> AnyAnswer:
    """By the probabilities of its labels.

    Raises:
        BadInput: Its labels do not exclude one another, and the question does.
    """
    scores: Mapping[str, float] = output["scores"]
    if isinstance(question, Predicate):
        label = label_of(question, list(scores))
        return PredicateAnswer(name=question.name, probability=scores[str(label)], x_coverage=None)
    if "labels" in output:
        raise BadInput(
            "this adapter gives any number of labels to a text: ask for each by a predicate",
            code="task_mismatch",
            param=f"questions.{place}.type",
        )
    offered = [scores[text] for text in offered_by(question)]
    return _among(question, _to_one(offered), min(1.0, math.fsum(offered)))


def _of_regression(question: Question, place: int, output: Mapping[str, Any]) -> AnyAnswer:
    """By where the number stands between two levels; beyond the last ones it stands on them."""
    score, scale = read_scale(question, place)
    value = float(output["value"])
    inside = min(max(value, scale[0]), scale[-1])
    low = min(bisect_right(scale, inside), len(scale) - 1) - 1
    upper = (inside - scale[low]) / (scale[low + 1] - scale[low])
    shares = [0.0] * len(scale)
    shares[low], shares[low + 1] = 1 - upper, upper
    return _of_levels(score, shares, None).model_copy(update={"x_value": value})


def _of_levels(question: Score, shares: Sequence[float], coverage: float | None) -> ScoreAnswer:
    return ScoreAnswer(
        name=question.name,
        score=math.fsum(place * share for place, share in enumerate(shares)),
        confidence=max(shares),
        probabilities=[
            LevelProbability(label=level.label, value=place, probability=share)
            for place, (level, share) in enumerate(zip(question.levels, shares, strict=True))
        ],
        x_coverage=coverage,
    )


def _among(
    question: Choice | Score, shares: Sequence[float], coverage: float | None
) -> ChoiceAnswer | ScoreAnswer:
    best = max(range(len(shares)), key=shares.__getitem__)
    if isinstance(question, Choice):
        return ChoiceAnswer(
            name=question.name,
            choice=question.choices[best].value,
            confidence=shares[best],
            probabilities=[
                ChoiceProbability(value=one.value, probability=share)
                for one, share in zip(question.choices, shares, strict=True)
            ],
            x_coverage=coverage,
        )
    return _of_levels(question, shares, coverage)


def _to_one(shares: Sequence[float]) -> list[float]:
    """Shares of a whole; equal ones where nothing offered has any."""
    total = math.fsum(shares)
    return [share / total for share in shares] if total else [1 / len(shares)] * len(shares)
