"""Answers that wait to be kept, and how they are written."""

import json
import time
from dataclasses import dataclass
from typing import Literal

from app.batches.door import Answer
from core.ids import new_id

Kind = Literal["output", "error"]

KEEP_SECONDS = 2.0
"""What a killed process loses at most, besides what was under way."""

KEEP_BYTES = 8 * 1024 * 1024
"""Answers with many numbers are kept sooner, so that memory stays small."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request.

    Attributes:
        kind: In which file it is told.
        line: How, with the end of the line.
        was_asked: Whether it counts.
    """

    kind: Kind
    line: bytes
    was_asked: bool


def answered(custom_id: str, answer: Answer) -> Outcome:
    """Tell an answer.

    Args:
        custom_id: The request's.
        answer: With any status.

    Returns:
        The outcome; a refusal stands in the error file, in the shape that the endpoint gave it.
    """
    head = _head(custom_id)
    response = json.dumps({"status_code": answer.status, "request_id": answer.request_id})
    # the body as it came: nothing is lost on the way, and vectors are not read only to be written
    line = b'%b, "response": %b, "body": %b}, "error": null}\n' % (
        head.encode(),
        response[:-1].encode(),
        answer.content,
    )
    return Outcome("error" if answer.status >= 400 else "output", line, was_asked=True)


def not_asked(custom_id: str, *, code: str, message: str) -> Outcome:
    """Tell that there is no answer.

    Args:
        custom_id: The request's.
        code: Why.
        message: The same for people.

    Returns:
        The outcome.
    """
    error = json.dumps({"code": code, "message": message})
    line = f'{_head(custom_id)}, "response": null, "error": {error}}}\n'
    return Outcome("error", line.encode(), was_asked=False)


def _head(custom_id: str) -> str:
    return json.dumps({"id": new_id("batch_req"), "custom_id": custom_id})[:-1]


class Part:
    """Outcomes of requests that stand one after the other in their file.

    Args:
        first: Place of the first of them, from 0.
    """

    def __init__(self, first: int) -> None:
        self.first = first
        self.requests = 0
        self.completed = 0
        self.failed = 0
        self.content: dict[Kind, bytearray] = {}
        self._began = time.monotonic()

    def add(self, outcome: Outcome) -> None:
        """Add the outcome of the next request.

        Args:
            outcome: What became of it.
        """
        self.requests += 1
        self.completed += outcome.kind == "output"
        self.failed += outcome.kind == "error" and outcome.was_asked
        self.content.setdefault(outcome.kind, bytearray()).extend(outcome.line)

    def seconds_left(self) -> float:
        """How long it may still grow."""
        return max(self._began + KEEP_SECONDS - time.monotonic(), 0.0)

    @property
    def is_due(self) -> bool:
        """Whether it is to be kept now."""
        length = sum(map(len, self.content.values()))
        return self.requests > 0 and (self.seconds_left() == 0 or length >= KEEP_BYTES)
