"""Tokens to text while they come: nothing is shown that a later token could take back."""

from collections.abc import Sequence

from peft_engine.bases.text import TextEncoder

_UNFINISHED = "\ufffd"
"""What a decoder shows for the first bytes of a character whose last bytes are still to come."""


class TextStream:
    """The text of one row.

    Text is *settled* once no later token can change it: half a character, and a tail that may be
    the beginning of a stop text, wait.

    Args:
        text: Tokenizer of the base.
        stops: Texts that end the row; they are cut off.
    """

    def __init__(self, text: TextEncoder, stops: Sequence[str] = ()) -> None:
        self._text = text
        self._stops = tuple(stops)
        self._ids: list[int] = []
        # Two places in the tokens, as text-generation-inference and vLLM keep them: the tokens
        # between them give the context that decides, say, whether a word begins with a blank.
        self._context = 0
        self._read = 0
        self._found = ""
        self._closed = False

    @property
    def settled(self) -> str:
        """The text that will not change any more; all of it once the stream is closed."""
        if self._closed or not self._stops:
            return self._found
        return self._found[: len(self._found) - self._held()]

    def add(self, token: int) -> bool:
        """Take a token.

        Args:
            token: Its id.

        Returns:
            True when a stop text is complete: the stream is closed, the text ends before it.
        """
        self._ids.append(token)
        self._advance(last=False)
        return self._stop()

    def close(self) -> None:
        """No token comes any more; half a character is shown as such."""
        self._advance(last=True)
        self._stop()
        self._closed = True

    def _advance(self, *, last: bool) -> None:
        known = self._text.decode(self._ids[self._context : self._read])
        text = self._text.decode(self._ids[self._context :])
        if len(text) > len(known) and (last or not text.endswith(_UNFINISHED)):
            self._found += text[len(known) :]
            self._context, self._read = self._read, len(self._ids)

    def _stop(self) -> bool:
        places = [place for stop in self._stops if (place := self._found.find(stop)) >= 0]
        if not places:
            return False
        self._found = self._found[: min(places)]
        self._closed = True
        return True

    def _held(self) -> int:
        """Characters at the end that may begin a stop text."""
        longest = max(len(stop) for stop in self._stops) - 1
        for size in range(min(longest, len(self._found)), 0, -1):
            tail = self._found[-size:]
            if any(stop.startswith(tail) for stop in self._stops):
                return size
        return 0
