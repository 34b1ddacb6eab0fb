"""Everything that is wrong with the file of a batch, before any of it is asked.

What only the endpoint can tell of a body stays the endpoint's to tell, in the error file.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.batches.lines import BadLine, Line, parse_line, read_lines
from app.openai.schemas.batches import RequestLine
from app.openai.services.targets import is_base
from app.schemas.shared import MAX_REFERENCE_CHARS
from app.services.origins import find_checkpoint
from core.db import Database, Session, adapters
from core.errors import NotFound
from core.ids import is_checkpoint
from core.settings import Settings

MAX_ERRORS = 1000
"""Listed; the others are counted."""

MAX_KNOWN = 10_000
"""Names of which it is remembered whether they mean anything; a file may hold millions."""

PREDICT = "/predict"


@dataclass
class Checked:
    """What was found in a file.

    Attributes:
        requests: Lines that are not blank.
        errors: ``{code, line, message, param}`` of the first that cannot be used.
        total: How many errors there are.
    """

    requests: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0

    def refuse(
        self, line: int | None, *, code: str, message: str, param: str | None = None
    ) -> None:
        """Note an error.

        Args:
            line: Where; None for the file as a whole.
            code: Stable name.
            message: What is wrong, and what to do.
            param: Field at fault.
        """
        self.total += 1
        if len(self.errors) < MAX_ERRORS:
            error = {"code": code, "line": line, "message": message, "param": param}
            self.errors.append(error)


class Checker:
    """Checks the file of one batch.

    Args:
        database: To look adapters up.
        settings: Limits and the known base models.
        tenant_id: Whose adapters may be named.
        endpoint: Where every request must go.
        is_stopped: Asked at every line; True ends the check at once.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        *,
        tenant_id: str,
        endpoint: str,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._database = database
        self._settings = settings
        self._tenant_id = tenant_id
        self._endpoint = endpoint
        self._is_stopped = is_stopped
        self._lines_of: dict[str, int] = {}
        self._adapters: dict[str, bool] = {}

    def check(self, path: Path) -> Checked:
        """Read the whole file.

        Args:
            path: On local disk.

        Returns:
            What was found. ``ServiceError`` goes through when the database is away.
        """
        found = Checked()
        limits = self._settings
        for line in read_lines(path, max_bytes=limits.max_batch_line_bytes):
            if self._is_stopped():
                return found
            found.requests += 1
            if found.requests > limits.max_batch_requests:
                found.refuse(
                    None,
                    code="too_many_requests_in_file",
                    message=f"more than {limits.max_batch_requests} requests; split the file",
                )
                return found
            self._check_line(line, found)
        if found.requests == 0:
            found.refuse(None, code="empty_file", message="the file holds no requests")
        return found

    def _check_line(self, line: Line, found: Checked) -> None:
        if line.content is None:
            most = self._settings.max_batch_line_bytes
            message = f"the line is longer than {most} bytes"
            found.refuse(line.number, code="too_large", message=message)
            return
        try:
            request = parse_line(line.content)
        except BadLine as error:
            for problem in error.problems:
                found.refuse(line.number, **problem)
            return
        for problem in self._problems(request, line.number):
            found.refuse(line.number, **problem)

    def _problems(self, request: RequestLine, number: int) -> Iterator[dict[str, Any]]:
        first = self._lines_of.setdefault(request.custom_id, number)
        if first != number:
            message = f"line {first} has the custom_id {request.custom_id[:100]!r} already"
            yield {"code": "duplicate_custom_id", "message": message, "param": "custom_id"}
        if request.url != self._endpoint:
            message = f"the batch is for {self._endpoint}, not for {request.url[:100]!r}"
            yield {"code": "bad_input", "message": message, "param": "url"}
            return
        for param, stream in _streams(request.body):
            if stream not in (None, False):
                message = "an answer in a file cannot be streamed; leave stream out"
                yield {"code": "unsupported", "message": message, "param": param}
        named = _of_predict(request.body) if self._endpoint == PREDICT else _of_v1(request.body)
        for one in named:
            if not self._is_there(one):
                message = f"there is no model {one.name[:100]!r}; GET /v1/models lists them"
                yield {"code": "model_not_found", "message": message, "param": one.param}

    def _is_there(self, named: "_Named") -> bool:
        name = named.name
        if named.may_be_base and is_base(self._settings, name):
            return True
        # what nothing can be called is refused by the endpoint, in better words
        if not 0 < len(name) <= MAX_REFERENCE_CHARS or not name.isprintable():
            return True
        return named.may_be_adapter and self._is_adapter(name)

    def _is_adapter(self, name: str) -> bool:
        if name not in self._adapters:
            if len(self._adapters) >= MAX_KNOWN:
                self._adapters.clear()
            with self._database.read() as session:
                self._adapters[name] = _has(session, self._tenant_id, name)
        return self._adapters[name]


@dataclass(frozen=True, slots=True)
class _Named:
    """A model that a body names, and where."""

    param: str
    name: str
    may_be_adapter: bool = True
    may_be_base: bool = True


def _has(session: Session, tenant_id: str, name: str) -> bool:
    try:
        if is_checkpoint(name):
            find_checkpoint(session, tenant_id, name)
        else:
            adapters.resolve(session, tenant_id, name)
    except NotFound:
        return False
    return True


def _streams(body: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "body.stream", body.get("stream")
    options = body.get("options")
    if isinstance(options, dict):
        yield "body.options.stream", options.get("stream")


def _of_v1(body: dict[str, Any]) -> Iterator[_Named]:
    if isinstance(body.get("model"), str):
        yield _Named("body.model", body["model"])


def _of_predict(body: dict[str, Any]) -> Iterator[_Named]:
    """What the call names, and each row of it."""
    yield from _of_row("body", body)
    for place, name in enumerate(_list(body.get("compare"))):
        if isinstance(name, str):
            yield _Named(f"body.compare.{place}", name, may_be_base=False)
    for place, row in enumerate(_list(body.get("inputs"))):
        if isinstance(row, dict):
            yield from _of_row(f"body.inputs.{place}", row)


def _of_row(where: str, row: dict[str, Any]) -> Iterator[_Named]:
    if isinstance(row.get("adapter_id"), str):
        yield _Named(f"{where}.adapter_id", row["adapter_id"], may_be_base=False)
    if isinstance(row.get("base_model"), str):
        yield _Named(f"{where}.base_model", row["base_model"], may_be_adapter=False)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
