"""What each answer must be: the same row, alone, on an engine of the client's own.

The oracle holds its own copy of the bases and never mixes rows: one adapter, one row, one forward.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft_engine.bases.base import Base
from peft_engine.delta import Delta
from peft_engine.serving import Engine, Row, prepare_row

SCORE_DIFFERENCE = 1e-4
"""Scores are probabilities; rounding moves them by about 1e-6 in a mixed batch, a neighbour's
adapter by far more than this."""


@dataclass(frozen=True)
class Known:
    """An adapter that was published, or a plain base.

    Attributes:
        reference: Its id; None: the plain base.
        shown: ``name@version``; None: the plain base.
        base: Name of the base.
        delta: Its weights; None: the plain base.
    """

    reference: str | None
    shown: str | None
    base: str
    delta: Delta | None

    @property
    def digest(self) -> str | None:
        """Digest of the weights."""
        return self.delta.digest if self.delta else None


class Oracle:
    """Answers rows one by one and remembers what it said; may be used from any thread.

    Args:
        bases: Its own copies of the bases, by name.
    """

    def __init__(self, bases: Mapping[str, Base]) -> None:
        self.bases = bases
        self._engines = {name: Engine(base) for name, base in bases.items()}
        self._said: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def disagreement(
        self,
        known: Known,
        given: Any,
        output: Any,
        receipt: Mapping[str, Any],
        *,
        task: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> str | None:
        """Compare an answer with what it must be.

        Args:
            known: Who should have answered.
            given: The input.
            output: What was answered.
            receipt: What it says of itself.
            task: As it was asked.
            options: As they were asked.

        Returns:
            What is wrong; None when nothing is.
        """
        told = (receipt["adapter_digest"], receipt["adapter"], receipt["base_model"])
        if told != (known.digest, known.shown, known.base):
            return f"the receipt says {told}, asked was {known.shown} on {known.base}"
        if receipt["base_fingerprint"] != self.bases[known.base].fingerprint:
            return f"the receipt names another base: {receipt['base_fingerprint']}"
        expected = self._expected(known, given, task, dict(options or {}))
        worst = _distance(expected, output)
        if worst <= SCORE_DIFFERENCE:
            return None
        return f"{known.shown or known.base}: {_short(output)} instead of {_short(expected)}"

    def _expected(
        self, known: Known, given: Any, task: str | None, options: dict[str, Any]
    ) -> dict[str, Any]:
        key = json.dumps([known.digest, known.base, given, task, options], sort_keys=True)
        with self._lock:
            if key not in self._said:
                engine = self._engines[known.base]
                row = prepare_row(engine.base, Row(task, given, known.delta, options))
                self._said[key] = engine.predict([row])[0].output
            return self._said[key]


def _distance(expected: Any, found: Any) -> float:
    """Largest difference of any number; infinite where anything else differs."""
    number = (int, float)
    if isinstance(expected, number) and isinstance(found, number):
        return abs(expected - found)
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        if expected.keys() != found.keys():
            return float("inf")
        return _worst([_distance(expected[name], found[name]) for name in expected])
    if isinstance(expected, str) or not isinstance(expected, Sequence):
        return 0.0 if expected == found else float("inf")
    if not isinstance(found, Sequence) or len(expected) != len(found):
        return float("inf")
    return _worst([_distance(a, b) for a, b in zip(expected, found, strict=True)])


def _worst(distances: list[float]) -> float:
    return max(distances, default=0.0)


def _short(output: Any) -> str:
    return json.dumps(output)[:300]
