"""What stands in the way of an exchange, collected so that all of it is told at once."""

from collections.abc import Iterable

from peft_engine.errors import ExchangeError, Problem

_MAX_PROBLEMS = 200
"""An answer stays readable; what comes after is counted."""


class Findings:
    """Reasons to refuse, and notes on what was decided for the user."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.notes: list[str] = []

    def refuse(self, code: str, message: str, where: str | None = None) -> None:
        """Add a reason to refuse.

        Args:
            code: Stable, lower case with underscores.
            message: What is wrong, with the value.
            where: The tensor, option or file at fault.
        """
        self.problems.append(Problem(code, message, where))

    def refuse_all(self, code: str, message: str, places: Iterable[str]) -> None:
        """Add the same reason for several places.

        Args:
            code: As for ``refuse``.
            message: As for ``refuse``.
            places: Tensors, options or files at fault.
        """
        for place in sorted(places):
            self.refuse(code, message, place)

    def note(self, message: str) -> None:
        """Add a note.

        Args:
            message: What was decided.
        """
        self.notes.append(message)

    def settle(self, code: str, what: str) -> None:
        """Go on only when nothing stands in the way.

        Args:
            code: Code of the error.
            what: What is refused, for its message.

        Raises:
            ExchangeError: There are problems.
        """
        if not self.problems:
            return
        count, first = len(self.problems), self.problems[0]
        where = f" ({first.where})" if first.where else ""
        more = f"; {count} reasons in all" if count > 1 else ""
        raise ExchangeError(
            f"{what}: {first.message}{where}{more}",
            code=code,
            problems=self.problems[:_MAX_PROBLEMS],
        )
