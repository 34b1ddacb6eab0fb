"""The rows that wait in one lane: tenants, their requests, the rows of each in order."""

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from inference.tickets import Ticket, Work


@dataclass(eq=False, slots=True)
class Line:
    """The rows of one request that wait in one lane."""

    ticket: Ticket
    works: deque[Work] = field(default_factory=deque)


class Lines:
    """Waiting rows of one lane; used under the scheduler's lock."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[Line]] = {}

    def __bool__(self) -> bool:
        """Whether any row waits."""
        return bool(self._lines)

    def __iter__(self) -> Iterator[Line]:
        """Walk the requests of all tenants."""
        for lines in self._lines.values():
            yield from lines

    @property
    def tenants(self) -> tuple[str, ...]:
        """Tenants with waiting rows, in order of arrival."""
        return tuple(self._lines)

    def add(self, tenant: str, line: Line) -> None:
        """Let a request wait behind the others of its tenant.

        Args:
            tenant: Whose request.
            line: Its rows, at least one.
        """
        self._lines.setdefault(tenant, deque()).append(line)

    def next(self, tenant: str, passed: Collection[Line] = ()) -> Line | None:
        """The request of a tenant whose turn it is.

        Args:
            tenant: A tenant with waiting rows.
            passed: Requests that are left out this time.

        Returns:
            The request, which keeps its place; None when all are left out.
        """
        return next((line for line in self._lines[tenant] if line not in passed), None)

    def take(self, tenant: str, line: Line) -> Work:
        """Take the next row of a request; the others of its tenant come first then.

        Args:
            tenant: The tenant.
            line: One of its requests.

        Returns:
            The row.
        """
        lines = self._lines[tenant]
        lines.remove(line)
        work = line.works.popleft()
        if line.works:
            lines.append(line)
        if not lines:
            del self._lines[tenant]
        return work

    def drop(self, tickets: Collection[Ticket]) -> int:
        """Take the rows of some requests out.

        Args:
            tickets: The requests.

        Returns:
            How many rows were waiting.
        """
        dropped = 0
        for tenant, lines in list(self._lines.items()):
            dropped += sum(len(line.works) for line in lines if line.ticket in tickets)
            kept = deque(line for line in lines if line.ticket not in tickets)
            if kept:
                self._lines[tenant] = kept
            else:
                del self._lines[tenant]
        return dropped
