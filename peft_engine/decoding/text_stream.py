"""Tokens to text while they come: nothing is shown that a later token could take back."""

from collections.abc import Sequence

from peft_engine.bases.text import TextEncoder

_UNFINISHED = "\ufffd"
"""What a decoder shows for the first bytes of a character whose last bytes are still to come."""


class _Stop:
    """Where one stop text may begin in a text that grows: a few steps for each character.

    Args:
        text: The stop text, not empty.

    Attributes:
        matched: Characters at the end of the text that may begin it.

    Source: Knuth, Morris and Pratt 1977, "Fast Pattern Matching in Strings".
    """

    def __init__(self, text: str) -> None:
        self._text = text
        # For each number of matched characters the next smaller one that fits too. Made as far as
        # it is needed: a stop text may be longer than all that is written.
        self._shorter = [0, 0]
        self.matched = 0

    def read(self, text: str) -> int | None:
        """Take what is new.

        Args:
            text: Characters behind those that were read.

        Returns:
            Where in them the stop text begins, negative where it began before them; None where it
            is not complete.
        """
        for place, character in enumerate(text):
            self.matched = self._longer(self.matched, character)
            if self.matched == len(self._text):
                return place + 1 - self.matched
            if self.matched == len(self._shorter):
                below = self._shorter[-1]
                self._shorter.append(self._longer(below, character))
        return None

    def _longer(self, matched: int, character: str) -> int:
        """How many are matched with one more character."""
        while matched and self._text[matched] != character:
            matched = self._shorter[matched]
        return matched + (self._text[matched] == character)


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
        self._stops = [_Stop(stop) for stop in stops]
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
        held = max(stop.matched for stop in self._stops)
        return self._found[: len(self._found) - held]

    def add(self, token: int) -> bool:
        """Take a token.

        Args:
            token: Its id.

        Returns:
            True when a stop text is complete: the stream is closed, the text ends before it.
        """
        self._ids.append(token)
        return self._advance(last=False)

    def close(self) -> None:
        """No token comes any more; half a character is shown as such."""
        self._advance(last=True)
        self._closed = True

    def _advance(self, *, last: bool) -> bool:
        known = self._text.decode(self._ids[self._context : self._read])
        text = self._text.decode(self._ids[self._context :])
        if len(text) <= len(known) or (not last and text.endswith(_UNFINISHED)):
            return False
        self._context, self._read = self._read, len(self._ids)
        return self._stop(text[len(known) :])

    def _stop(self, new: str) -> bool:
        """Add new text and cut the text before the first stop text that is complete."""
        before = len(self._found)
        self._found += new
        starts = [start for stop in self._stops if (start := stop.read(new)) is not None]
        if not starts:
            return False
        self._found = self._found[: before + min(starts)]
        self._closed = True
        return True
