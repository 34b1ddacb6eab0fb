"""Seconds that were measured more than once, or that depend on what nobody knows yet."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """A number of seconds.

    Attributes:
        likely: The best guess.
        low: As little as it may be.
        high: As much.
    """

    likely: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: float) -> "Spread":
        """What was measured once.

        Args:
            seconds: It.

        Returns:
            The same three times, since nothing is known of what it varies by.
        """
        return cls(seconds, seconds, seconds)

    @classmethod
    def among(cls, measured: Sequence[float]) -> "Spread":
        """What was measured several times.

        Args:
            measured: One at least.

        Returns:
            Mean, least and most.
        """
        return cls(sum(measured) / len(measured), min(measured), max(measured))

    @classmethod
    def total(cls, parts: Iterable["Spread"]) -> "Spread":
        """Parts that follow one another.

        Args:
            parts: Any number.

        Returns:
            Their sums.
        """
        own = list(parts)
        return cls(
            sum(part.likely for part in own),
            sum(part.low for part in own),
            sum(part.high for part in own),
        )

    def at_least(self, share: float) -> "Spread":
        """The same, and no narrower than so much to both sides.

        Args:
            share: Of the best guess.

        Returns:
            The spread.
        """
        return Spread(
            self.likely,
            min(self.low, self.likely * (1 - share)),
            max(self.high, self.likely * (1 + share)),
        )

    def times(self, factor: float) -> "Spread":
        """The same so many times.

        Args:
            factor: How many.

        Returns:
            The products.
        """
        return Spread(self.likely * factor, self.low * factor, self.high * factor)
