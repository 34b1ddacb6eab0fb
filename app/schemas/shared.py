"""Shapes that every resource shares: the error body, a page of a list, a deletion."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
)

from core.errors import BadInput
from peft_engine.configs.methods import METHOD_NAMES
from peft_engine.configs.model import Config

T = TypeVar("T")

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
"""Names of data sets, adapters and keys (API.md): safe in a path, in a shell and as a file name."""

MAX_REFERENCE_CHARS = 300
"""Of who is asked, wherever that is said: the name of a checkpoint holds those of its base, tenant,
adapter and job."""

MAX_PAGE_ROWS = 100
"""One page is one short read; whoever wants all follows ``after``."""

_MAX_SHOWN_CHARS = 200

_PLAINER: Mapping[str, str] = MappingProxyType(
    {
        "extra_forbidden": "there is no such field (/docs shows those there are)",
        "too_long": "must be at most {max_length} long, not {actual_length}",
        "too_short": "must be at least {min_length} long, not {actual_length}",
        "tuple_type": "Input should be a valid list",
    }
)
"""What is said in place of pydantic's words, by the type of its error: JSON has no tuples."""

_TYPES = frozenset(
    {*METHOD_NAMES, "choice", "predicate", "score", "input_json", "input_text", "output_text"}
)
"""Of what stands in lists whose entries say their ``type``: methods of a job, questions, and parts
of their input."""

_UNION_BRANCH = re.compile(
    r"(literal|function-\w+|list|tuple|dict|lax-or-strict|json-or-python|nullable)\[.*\]"
    r"|constrained-(str|int|float)"
)
"""Parts of pydantic's paths that name a branch of a union and could hardly be fields. The other
branches of the same union stand at the same place, and may be called as fields are: ``float``."""


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("U+0000 is not allowed here")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair is not allowed here") from None
    return text


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Text = Annotated[str, AfterValidator(_no_nul)]
"""Text that every database can store: no U+0000 (Postgres refuses it) and no lone surrogate."""

Name = Annotated[str, Field(pattern=NAME_PATTERN, examples=["support-intents"])]

Moment = Annotated[
    AwareDatetime,
    PlainSerializer(_rfc3339, return_type=str, when_used="json"),
    Field(examples=["2026-11-23T17:55:00.000Z"]),
]
"""A point in time, RFC 3339 in UTC with milliseconds."""


class Sent(BaseModel):
    """Base of every answer: frozen, built from keyword arguments."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="null")


class Asked(Config):
    """Base of every request body, as strict about fields and types as a job's specification."""


class ErrorBody(Sent):
    """What went wrong, for a program (``code``, ``param``) and for a person (``message``)."""

    message: str = Field(description="What failed, the value, and what to do.")
    type: str = Field(description="Family of the error, one per HTTP status.")
    code: str = Field(description="Stable code of the error.")
    param: str | None = Field(
        None, description="Path of the field at fault, such as `training.epochs`."
    )
    request_id: str = Field(description="The same as the header `x-request-id`.")
    details: list[dict[str, Any]] | None = Field(
        None, description="Every single problem, if there are several."
    )


class ErrorAnswer(Sent):
    """The body of every answer with a status of 400 or more."""

    error: ErrorBody


class Page(Sent, Generic[T]):
    """One page of a list, newest first; ask for the next with `?after=<last_id>`."""

    object: Literal["list"] = "list"
    data: list[T]
    has_more: bool = Field(description="Whether there are older rows.")
    first_id: str | None = None
    last_id: str | None = None

    @classmethod
    def of(cls, rows: Sequence[T], *, has_more: bool) -> "Page[T]":
        """Make a page.

        Args:
            rows: In the order of the list; each has an ``id``.
            has_more: Whether there are older rows.

        Returns:
            The page with its first and last id.
        """
        ids = [str(getattr(row, "id", "")) for row in rows]
        return Page(
            data=list(rows),
            has_more=has_more,
            first_id=ids[0] if ids else None,
            last_id=ids[-1] if ids else None,
        )


class Deleted(Sent):
    """A resource that is gone."""

    id: str
    object: str
    deleted: Literal[True] = True


def refusal_of(error: ValidationError, *, under: str = "") -> BadInput:
    """Turn what pydantic found wrong into the error that a user is sent.

    Args:
        error: What it found.
        under: Where the value stood; nothing is put before the fields without it.

    Returns:
        The error of the first problem; all of them are in ``details``.
    """
    details = problems_of(error.errors())
    if under:
        for problem in details:
            problem["param"] = f"{under}.{problem['param']}".rstrip(".")
    first = details[0]
    return BadInput(f"{first['param']}: {first['message']}", param=first["param"], details=details)


def _got(error: Mapping[str, Any]) -> str:
    given = error.get("input")
    if not isinstance(given, str | int | float | bool) or error["type"] == "missing":
        return ""
    shown = str(given).lower() if isinstance(given, bool) else repr(given)
    return f", got {shown[:_MAX_SHOWN_CHARS]}"


def _message_of(error: Mapping[str, Any]) -> str:
    plainer = _PLAINER.get(error["type"])
    if plainer is None:
        return str(error["msg"]).removeprefix("Value error, ")
    return plainer.format(**error.get("ctx", {}))


def problems_of(found: Sequence[Any]) -> list[dict[str, Any]]:
    """Turn pydantic's list of errors into ours.

    Args:
        found: ``ValidationError.errors()`` or the framework's.

    Returns:
        One ``{param, code, message}`` for each problem, with the value where it is short.
    """
    unions = {
        error["loc"][:place]
        for error in found
        for place, part in enumerate(error["loc"])
        if _UNION_BRANCH.fullmatch(str(part))
    }
    problems: dict[str, dict[str, Any]] = {}
    for error in found:
        loc = error["loc"]
        # the branch that `type` chose inside a list is no part of what was sent
        where = [
            str(part)
            for place, (before, part) in enumerate(zip((None, *loc), loc, strict=False))
            if loc[:place] not in unions and not (isinstance(before, int) and part in _TYPES)
        ]
        if where and where[0] in {"body", "query", "path", "header"}:
            where = where[1:] or ["body"]
        param = ".".join(where)
        message = _message_of(error)
        known = problems.get(param)
        if known is not None:
            # Branches of a union refuse the same value; a dependency that reads the body as its
            # route does refuses it once more, for the same reason.
            if message not in known["message"]:
                known["message"] = f"{message}, or: {known['message']}"
            continue
        problems[param] = {
            "param": param,
            "code": str(error["type"]),
            "message": f"{message}{_got(error)}",
        }
    # a list with a wrong item is also "too short": that says nothing new
    return [
        problem
        for param, problem in problems.items()
        if problem["code"] != "too_short"
        or not any(other.startswith(f"{param}.") for other in problems)
    ]


def refuse_unstorable(value: Any) -> None:
    """Refuse a text that some database cannot store: U+0000, or half of a surrogate pair.

    Args:
        value: Any JSON value.

    Raises:
        BadInput: There is one; ``param`` is the path of the first.
    """
    for where, text in walk_texts(value):
        if "\0" in text or not _has_bytes(text):
            param = where or "body"
            raise BadInput(f"{param} holds U+0000 or half of a surrogate pair", param=param)


def _has_bytes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def walk_texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Give every text in a JSON value, keys too; not recursive, so that no depth can break it.

    Args:
        value: Any JSON value.
        path: Where it stands.

    Yields:
        The path of a text, in which long keys are cut, and the text.
    """
    if isinstance(value, str):
        yield path, value
    # What is left of each container on the way: a body may hold millions of numbers, and no memory
    # is taken for what is no text.
    waiting = [(path, _entries(value))]
    while waiting:
        where, entries = waiting[-1]
        dot = f"{where}." if where else ""
        for key, item in entries:
            if isinstance(key, str):
                yield where, key
            if isinstance(item, str):
                yield f"{dot}{_short(key)}", item
            elif isinstance(item, dict | list | tuple):
                waiting.append((f"{dot}{_short(key)}", _entries(item)))
                break
        else:
            waiting.pop()


def _entries(value: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, dict):
        return iter(value.items())
    return enumerate(value) if isinstance(value, list | tuple) else iter(())


def _short(key: str | int) -> str | int:
    return key[:_MAX_SHOWN_CHARS] if isinstance(key, str) else key
