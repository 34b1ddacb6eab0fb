"""The place where readers and task schemas say what they think of the row at hand."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from peft_engine.records.problems import NoticeList, ProblemList, shown


@dataclass
class Observation:
    """How often something was seen, and where first."""

    count: int
    first_line: int


class RowCheck:
    """Collects the findings of one file, row by row.

    Args:
        problems: Where problems go.
        notices: Where notices go.
        file: Which upload: ``all``, ``train``, ``validation`` or ``test``; None for a lone row.
        textual: Values come from a table: every one is a text.
        labelled: The rows carry what is to be learned. False for the inputs of a prediction.
        max_label_characters: Longest label.
        max_choices: Most choices of a multiple-choice row.
        decode_json: Strict decoder for cells that hold JSON (lists in a table).
    """

    def __init__(
        self,
        problems: ProblemList,
        notices: NoticeList,
        *,
        file: str | None = None,
        textual: bool = False,
        labelled: bool = True,
        max_label_characters: int = 512,
        max_choices: int = 256,
        decode_json: Callable[[str], Any] | None = None,
    ) -> None:
        self.problems = problems
        self.notices = notices
        self.file = file
        self.textual = textual
        self.labelled = labelled
        self.max_label_characters = max_label_characters
        self.max_choices = max_choices
        self.decode_json = decode_json
        self.line: int | None = None
        self.failed = False
        self.unread: set[str] = set()  # fields of this row whose problem is told already
        self.rows_read = 0
        self.header_line: int | None = None  # of a table
        self.names: dict[str, str] = {}  # our field -> the user's name for it, where they differ
        self._observed: dict[tuple[str, str], Observation] = {}

    def at(self, line: int | None) -> None:
        """Begin a row.

        Args:
            line: Its physical line, from 1.
        """
        self.line = line
        self.failed = False
        self.unread.clear()

    def bad(self, code: str, message: str, fix: str, *, column: str | None = None) -> None:
        """The row is refused for this reason; more reasons may follow.

        Args:
            code: A key of ``problems.CODES``.
            message: What is wrong, with the value.
            fix: What to do.
            column: Field at fault.
        """
        self.failed = True
        theirs = self.names.get(column or "")
        if theirs:
            message, column = f'{message} ("{column}" is your {shown(theirs)})', theirs
        self.problems.add(code, message, fix, file=self.file, line=self.line, column=column)

    def notice(
        self,
        code: str,
        message: str,
        fix: str = "",
        *,
        level: Literal["warning", "note"] = "warning",
        count: int = 1,
    ) -> None:
        """The row is taken, and the user should know this.

        Args:
            code: A key of ``problems.CODES``.
            message: What was seen or done; the same text for every row.
            fix: What to do.
            level: ``warning`` or ``note``.
            count: How many things this call stands for.
        """
        self.notices.add(
            code, message, fix, level=level, file=self.file, line=self.line, count=count
        )

    def observe(self, what: str, value: str) -> None:
        """Count a property whose mixture matters for the whole set, such as the type of a label.

        Args:
            what: Name of the property.
            value: One of few values.
        """
        seen = self._observed.get((what, value))
        if seen is None:
            self._observed[(what, value)] = Observation(1, self.line or 0)
        else:
            seen.count += 1

    def observed(self, what: str) -> dict[str, Observation]:
        """What was observed of a property.

        Args:
            what: Name of the property.

        Returns:
            Value to count and first line, in the order of appearance; empty when never observed.
        """
        return {value: seen for (name, value), seen in self._observed.items() if name == what}
