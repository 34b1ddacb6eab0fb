"""Texts that were asked for and written, whatever shape they are sent in."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.openai.schemas.shared import TextRequest, TokenUsage
from app.openai.services.targets import (
    draw_seed,
    fingerprint_of,
    name_of,
    receipt_of,
)
from app.services.predictions import Planned
from core.ids import new_id

TASK = "text-generation"


@dataclass(frozen=True)
class Written:
    """One text.

    Attributes:
        index: Its place among all choices.
        text: The whole of it.
        finish_reason: ``stop`` or ``length``.
        logprobs: Of every token, as ``/predict`` has them; None when not asked.
    """

    index: int
    text: str
    finish_reason: str
    logprobs: Sequence[Mapping[str, Any]] | None


@dataclass(frozen=True)
class Asked:
    """A request for texts that has been planned.

    Attributes:
        id: Of the answer.
        created: Unix seconds.
        model: Who answers.
        seed: In force; None where nothing is drawn.
        n: Texts for every row.
        planned: The rows.
        tells_usage: Whether a stream ends with the usage.
    """

    id: str
    created: int
    model: str
    seed: int | None
    n: int
    planned: Planned
    tells_usage: bool

    @classmethod
    def of(cls, kind: str, body: TextRequest, planned: Planned, seed: int | None) -> "Asked":
        """Begin an answer.

        Args:
            kind: What the answer's id begins with.
            body: The request.
            planned: Its rows.
            seed: In force.

        Returns:
            What the answer says before anything is written.
        """
        options = body.stream_options
        return cls(
            id=new_id(kind),
            created=int(time.time()),
            model=name_of(planned),
            seed=seed,
            n=body.n,
            planned=planned,
            tells_usage=options is not None and options.include_usage,
        )

    @property
    def head(self) -> dict[str, Any]:
        """What the answer and every chunk of it begin with."""
        return {
            "id": self.id,
            "created": self.created,
            "model": self.model,
            "x_seed": self.seed,
        }

    def origin(self, receipt: dict[str, Any]) -> dict[str, Any]:
        """What is told once a row is over.

        Args:
            receipt: The inference process's.

        Returns:
            ``system_fingerprint`` and ``x_receipt``.
        """
        shown = receipt_of(self.planned, receipt)
        return {"system_fingerprint": fingerprint_of(shown), "x_receipt": shown}

    def choices(self, row: int, output: Mapping[str, Any]) -> Iterator[Written]:
        """The texts of a row.

        Args:
            row: Its place.
            output: The inference process's.

        Yields:
            One for each of ``n``.
        """
        for place, found in enumerate(output.get("choices", [output])):
            yield Written(
                row * self.n + place,
                str(found["text"]),
                str(found["finish_reason"]),
                found.get("logprobs"),
            )


def read_options(
    body: TextRequest, *, max_tokens: int | None, logprobs: int | None
) -> tuple[dict[str, Any], int | None]:
    """Read how texts shall be written.

    Args:
        body: The request.
        max_tokens: Most tokens; None leaves it to the inference process.
        logprobs: How many of the likeliest tokens are told; None: nothing is.

    Returns:
        ``options`` of ``/predict``, and the seed in force.
    """
    seed = draw_seed(body.temperature, body.seed)
    options = {
        "max_new_tokens": max_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "n": body.n,
        "stop": body.stop,
        "seed": seed,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "logprobs": logprobs,
        **body.x_tunery.model_dump(),
    }
    return {name: value for name, value in options.items() if value is not None}, seed


def as_usage(usage: Mapping[str, Any]) -> TokenUsage:
    """Shape counts of tokens.

    Args:
        usage: ``input_tokens`` and ``output_tokens``.

    Returns:
        The same and their sum.
    """
    read, written = int(usage["input_tokens"]), int(usage["output_tokens"])
    return TokenUsage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)
