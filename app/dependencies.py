"""What routes ask for: the caller, a transaction, the parts. Turns HTTP into arguments."""

import ipaddress
import re
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Annotated, Any

from fastapi import Depends, Header, Path, Query, Request, Response, Security, params
from fastapi.concurrency import run_in_threadpool
from fastapi.dependencies.utils import get_flat_params
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from app.schemas.shared import MAX_PAGE_ROWS
from app.services.callers import INSIDE, Caller, assume_default, authenticate
from app.services.parts import Parts, Unit
from core.db import Session
from core.errors import BadInput, Forbidden
from core.settings import Settings, is_loopback

_bearer = HTTPBearer(auto_error=False, scheme_name="bearer", description="`tk_…`")
_header = APIKeyHeader(
    name="x-api-key", auto_error=False, scheme_name="x-api-key", description="`tk_…`"
)


_SHOWN_CHARS = 80
"""Of a name that somebody made up; longer than any of ours."""


class GuardedRoute(APIRoute):
    """A route that knows its caller before it reads one byte of the body, and its parameters.

    The framework reads the body first and asks dependencies afterwards: somebody without a key
    could send gigabytes before the 401. And it ignores what it does not know in a query: a list
    with a filter spelt wrongly would be the whole list.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the framework's handler.

        Returns:
            A handler that authenticates, refuses unknown parameters of the query, limits the body,
            and goes on.
        """
        handle = super().get_route_handler()
        is_parsed = self.body_field is not None
        known = _query_parameters(self)

        async def guard(request: Request) -> Response:
            request.state.caller = await _find_caller(request)
            _refuse_unknown(request, known)
            if is_parsed:
                # held in memory while it is parsed; files are streamed and have their own limit
                limit_bytes = _parts_of(request).settings.max_body_bytes
                receive = _limited(request.receive, request.headers, limit_bytes)
                request = Request(request.scope, receive)
            return await handle(request)

        return guard


def _query_parameters(route: APIRoute) -> list[str]:
    """Names of the query, ``name[…]`` for an object whose entries are named, as described."""
    declared = get_flat_params(route.dependant)
    names = [field.alias for field in declared if isinstance(field.field_info, params.Query)]
    for described in (route.openapi_extra or {}).get("parameters", ()):
        is_object = described.get("style") == "deepObject"
        names.append(described["name"] + ("[…]" if is_object else ""))
    return names


def _refuse_unknown(request: Request, known: Sequence[str]) -> None:
    """Refuse what would be ignored.

    Raises:
        BadInput: The query has a parameter that the route does not have.
    """
    # an entry of an object is known by the object's name
    given = {name: re.sub(r"\[.*\]$", "[…]", name) for name in request.query_params}
    unknown = [name[:_SHOWN_CHARS] for name, kind in given.items() if kind not in known]
    if not unknown:
        return
    allowed = f"known here: {', '.join(known)}" if known else "this route has none"
    message = f"there is no such query parameter; {allowed}"
    raise BadInput(
        f"{unknown[0]}: {message}",
        param=unknown[0],
        details=[{"param": n, "code": "extra_forbidden", "message": message} for n in unknown],
    )


async def _find_caller(request: Request) -> Caller:
    inside: Caller | None = request.scope.get(INSIDE)
    if inside is not None:
        return inside
    parts = _parts_of(request)
    if parts.settings.auth == "off":
        _check_local(request.headers, parts.settings)
        return await run_in_threadpool(assume_default, parts.database)
    kind, _, bearer = request.headers.get("authorization", "").partition(" ")
    given = bearer.strip() if kind.lower() == "bearer" else ""
    secret = given or request.headers.get("x-api-key", "")
    caller = parts.callers.find(secret)
    if caller is None:
        moment = parts.callers.moment
        caller = await run_in_threadpool(authenticate, parts.database, secret)
        parts.callers.remember(secret, caller, moment=moment)
    return caller


def _check_local(headers: Headers, settings: Settings) -> None:
    # without keys, only pages and programs of this machine may ask: a web page from elsewhere
    # reaches loopback too, through the browser
    names = [headers.get("host", settings.host)]
    if "origin" in headers:
        names.append(headers["origin"].partition("://")[2])
    for name in names:
        if not is_loopback(_host_of(name)):
            raise Forbidden(
                f"auth is off, and only loopback names are answered, not {name[:100]!r}",
                code="host_not_allowed",
            )


def _host_of(netloc: str) -> str:
    if netloc.startswith("["):
        return netloc[1:].partition("]")[0]
    try:
        return str(ipaddress.ip_address(netloc))
    except ValueError:
        return netloc.partition(":")[0].lower()


def _limited(receive: Receive, headers: Headers, limit_bytes: int) -> Receive:
    """Stop reading a body that is too large, by its announced length or by what has come."""
    announced = headers.get("content-length", "")
    too_large = announced.isdecimal() and int(announced) > limit_bytes
    received = 0

    async def receive_limited() -> Message:
        nonlocal received
        if too_large:
            raise HTTPException(413)
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit_bytes:
            raise HTTPException(413)
        return message

    return receive_limited


async def give_parts(request: Request) -> Parts:
    """Give the parts that the lifespan opened.

    Args:
        request: Any request of the application.

    Returns:
        The parts.
    """
    return _parts_of(request)


def _parts_of(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


# dependencies that wait for nothing are async: a plain one costs a turn in the thread pool
PartsDep = Annotated[Parts, Depends(give_parts)]


def _read(parts: PartsDep) -> Iterator[Session]:
    with parts.database.read() as session:
        yield session


def _write(parts: PartsDep) -> Iterator[Unit]:
    with parts.unit() as unit:
        yield unit


# "function": with the default scope the client has its answer before the commit, which may still
# fail
ReadDep = Annotated[Session, Depends(_read, scope="function")]
UnitDep = Annotated[Unit, Depends(_write, scope="function")]


def _allow(scope: str) -> Any:
    async def require(
        request: Request,
        _bearer_key: Annotated[object, Security(_bearer)],
        _header_key: Annotated[object, Security(_header)],
    ) -> Caller:
        caller: Caller = request.state.caller
        caller.require(scope)
        return caller

    return Depends(require)


Reader = Annotated[Caller, _allow("read")]
Writer = Annotated[Caller, _allow("write")]
Predictor = Annotated[Caller, _allow("predict")]
Admin = Annotated[Caller, _allow("admin")]

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,127}$"
"""Ids and references in paths; nothing that a database could choke on comes further."""

Id = Annotated[str, Path(pattern=ID_PATTERN)]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE_ROWS, description="Rows of one page.")]
After = Annotated[
    str | None,
    Query(pattern=ID_PATTERN, description="`last_id` of the page before."),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x20-\x7e]+$",
        description="The same key with the same body gives the same answer; with another body 409.",
    ),
]
