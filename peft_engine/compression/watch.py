"""What making a derived base tells while it goes on, and how it can be stopped; no torch."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Watch:
    """Looks at work that may take minutes.

    Attributes:
        check: Called between the parts of the work; may raise to end it.
        progress: Told what is done and how far: a few words, parts done, parts in all.
    """

    check: Callable[[], None] = lambda: None
    progress: Callable[[str, int, int], None] = lambda _what, _done, _of: None

    def part(self, what: str, done: int, of: int) -> None:
        """Begin the next part.

        Args:
            what: A few words.
            done: Parts that are done.
            of: Parts in all.
        """
        self.check()
        self.progress(what, done, of)


UNWATCHED = Watch()
"""Nobody asks, nobody stops it."""
