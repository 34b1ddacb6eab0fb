"""What has happened to the rows of a streamed request since one last looked.

Nothing is queued between the owner thread and a slow reader: the ticket holds how far every row has
come, and a reader that comes late gets more text at once.
"""

from collections.abc import Iterator
from typing import Any

from inference.runner import Answered
from inference.tickets import Ticket


class Story:
    """The events of one ticket, each told once.

    Args:
        ticket: The request.
    """

    def __init__(self, ticket: Ticket) -> None:
        self._ticket = ticket
        self._told: dict[tuple[int, int], int] = {}
        self._over: set[int] = set()

    def news(self) -> Iterator[dict[str, Any]]:
        """Tell what is new.

        Yields:
            ``{"row", "choice", "text"}`` and ``{"row", "output", "receipt"}``.
        """
        for row, texts in sorted(self._ticket.texts.copy().items()):
            if row not in self._over:
                yield from self._new_text(row, texts)
        for row, answered in enumerate(self._ticket.results):
            if answered is not None and row not in self._over:
                self._over.add(row)
                yield from self._ending(row, answered)

    def _ending(self, row: int, answered: Answered) -> Iterator[dict[str, Any]]:
        output = answered.answer.output
        if "text" in output:
            choices = output.get("choices", [output])
            yield from self._new_text(row, tuple(choice["text"] for choice in choices))
        yield {"row": row, "output": output, "receipt": answered.receipt.model_dump()}

    def _new_text(self, row: int, texts: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        for choice, text in enumerate(texts):
            told = self._told.get((row, choice), 0)
            if len(text) > told:
                self._told[row, choice] = len(text)
                yield {"row": row, "choice": choice, "text": text[told:]}
