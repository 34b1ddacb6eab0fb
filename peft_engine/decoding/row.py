"""One row of a decoding batch: its tokens, its text, how it ended."""

from dataclasses import dataclass, field
from typing import Any

import torch

from peft_engine.bases.text import TextEncoder
from peft_engine.decoding.text_stream import TextStream
from peft_engine.generation import Sampling


@dataclass(frozen=True)
class TokenChoice:
    """A chosen token.

    Attributes:
        token: Its id.
        logprob: Natural logarithm of its probability before temperature and penalties; None when
            nobody asked.
        top: The most likely tokens with the same, likeliest first.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class DecodingRow:
    """A row from its prompt to its last token. Only the decoder changes it.

    Attributes:
        prompt: Token ids of the prompt.
        sampling: How it chooses.
        owner: Whose delta acts on it; opaque here, equal owners are the same object.
        payload: Whatever the caller wants to find again.
        choices: Tokens that were chosen.
        text: Its text so far.
        cached: Tokens whose keys and values are in its slot.
        finish_reason: ``stop`` (end token or stop text), ``length`` or ``cancelled``; None while
            it runs.
        generator: Its own random numbers.
    """

    prompt: list[int]
    sampling: Sampling
    text: TextStream
    generator: torch.Generator
    owner: Any = None
    payload: Any = None
    choices: list[TokenChoice] = field(default_factory=list)
    cached: int = 0
    finish_reason: str | None = None

    @classmethod
    def of(
        cls,
        prompt: list[int],
        sampling: Sampling,
        *,
        text: TextEncoder,
        device: torch.device,
        owner: Any = None,
        payload: Any = None,
    ) -> "DecodingRow":
        """A row that has not begun.

        Args:
            prompt: Token ids, at least one.
            sampling: How it chooses.
            text: Tokenizer of the base.
            device: Where its random numbers are drawn.
            owner: Whose delta acts on it; None is the plain base.
            payload: Whatever the caller wants to find again.

        Returns:
            The row.
        """
        generator = torch.Generator(device).manual_seed(sampling.seed)
        return cls(prompt, sampling, TextStream(text, sampling.stop), generator, owner, payload)

    @property
    def ids(self) -> list[int]:
        """Tokens that were chosen, the end token included."""
        return [choice.token for choice in self.choices]

    @property
    def longest_tokens(self) -> int:
        """Tokens of its prompt and of its longest continuation."""
        return len(self.prompt) + self.sampling.max_new_tokens

    @property
    def is_prefilling(self) -> bool:
        """Whether tokens of its prompt are still to be read."""
        return self.cached < len(self.prompt)

    def take(self, choice: TokenChoice, *, end_id: int | None) -> None:
        """Add a token, and end where it says so.

        Args:
            choice: The token.
            end_id: The base's end token.
        """
        self.choices.append(choice)
        if choice.token == end_id:
            self.text.close()
            self.finish_reason = "stop"
        elif self.text.add(choice.token):
            self.finish_reason = "stop"
        elif len(self.choices) >= self.sampling.max_new_tokens:
            self.text.close()
            self.finish_reason = "length"

    def end(self, reason: str) -> None:
        """End here; what was written stays.

        Args:
            reason: Why.
        """
        self.text.close()
        self.finish_reason = reason

    def cancel(self) -> None:
        """End here, since nobody waits for the rest."""
        self.end("cancelled")
