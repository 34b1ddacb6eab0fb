"""Every failure in one shape (API.md, Errors).

Knows HTTP and the error trees; decides nothing. ``code`` is what a program reads, ``message`` what
a person reads. What failed inside stands in the log alone.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from app.schemas.shared import ErrorAnswer, ErrorBody, problems_of
from core.errors import ServiceError
from peft_engine.errors import EngineError

TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "server_error",
}

_METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")

_HTTP_CODES: Mapping[int, tuple[str, str]] = {
    404: ("not_found", "there is nothing at this path; GET /docs lists every route"),
    405: (
        "method_not_allowed",
        "this path does not take this method; the header Allow names those it takes",
    ),
    413: ("too_large", "the body is larger than this route takes"),
}

_FINAL = frozenset({409, 500, 504})
"""Statuses that the official client would ask again by itself, which cannot help here: a conflict
lasts until something else is done, a fault of ours meets the same request again, and what took too
long would take as long twice more, beside all else that is asked."""

_log = logging.getLogger(__name__)

MAX_RETRY_AFTER_SECONDS = 120
"""The official client gives up at once when told to wait longer."""


def error_answer(
    request_id: str,
    *,
    status: int,
    code: str,
    message: str,
    param: str | None = None,
    details: Sequence[Mapping[str, Any]] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Build the answer of a failed request.

    Args:
        request_id: As in ``x-request-id``.
        status: HTTP status, 400 or more.
        code: Stable code.
        message: For people.
        param: Field at fault.
        details: Every problem, if there are several.
        headers: To add.

    Returns:
        The response in the shape of API.md.
    """
    body = ErrorBody(
        message=message,
        type=TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error"),
        code=code,
        param=param,
        request_id=request_id,
        details=None if details is None else [dict(detail) for detail in details],
    )
    content = ErrorAnswer(error=body).model_dump(mode="json")
    if details is None:
        del content["error"]["details"]
    own = {"x-should-retry": "false"} if status in _FINAL else {}
    return JSONResponse(content, status_code=status, headers={**own, **(headers or {})})


def internal_error(request_id: str) -> JSONResponse:
    """Build the answer for a fault of ours.

    Args:
        request_id: Under which the log has the traceback.

    Returns:
        A 500 that says nothing about the inside.
    """
    return error_answer(
        request_id,
        status=500,
        code="internal_error",
        message=f"something failed on our side; it is logged as {request_id}",
    )


def install(app: FastAPI) -> None:
    """Register the handlers.

    Args:
        app: The application.
    """
    app.exception_handler(ServiceError)(_service_error)
    app.exception_handler(EngineError)(_engine_error)
    app.exception_handler(RequestValidationError)(_validation_error)
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(ClientDisconnect)(_cut_off)


def _id_of(request: Request) -> str:
    return str(request.scope.get("state", {}).get("request_id", ""))


async def _service_error(request: Request, error: ServiceError) -> JSONResponse:
    headers = {}
    if error.retry_after_seconds is not None:
        headers["retry-after"] = str(min(int(error.retry_after_seconds), MAX_RETRY_AFTER_SECONDS))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.status >= 500 and error.__cause__ is not None:
        # the first line: below it some drivers quote a statement with its values
        cause = (str(error.__cause__).splitlines() or [type(error.__cause__).__name__])[0]
        _log.warning("%s (%s): %s", error.code, _id_of(request), cause)
    return error_answer(
        _id_of(request),
        status=error.status,
        code=error.code,
        message=error.message,
        param=error.param,
        details=error.details,
        headers=headers,
    )


async def _engine_error(request: Request, error: EngineError) -> JSONResponse:
    return error_answer(
        _id_of(request), status=400, code=error.code, message=error.message, param=error.param
    )


async def _cut_off(request: Request, _error: ClientDisconnect) -> JSONResponse:
    # nobody reads this; it keeps a client that went away out of the log of our own faults
    return error_answer(
        _id_of(request),
        status=400,
        code="upload_incomplete",
        message="the connection was closed before the body was complete",
    )


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    code, message = _HTTP_CODES.get(error.status_code, ("bad_input", str(error.detail)))
    if error.status_code == 400:
        code, message = "invalid_json", "the body is not JSON that can be read"
    headers = error.headers
    if error.status_code == 405:
        headers = {"allow": ", ".join(_methods_of(request))}
    return error_answer(
        _id_of(request), status=error.status_code, code=code, message=message, headers=headers
    )


def _methods_of(request: Request) -> list[str]:
    # the framework names the methods of the first route of the path only
    return [
        method
        for method in _METHODS
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.router.routes
        )
    ]


async def _validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
    found = error.errors()
    if found and found[0]["type"] == "json_invalid":
        position = found[0]["loc"][-1]
        reason = found[0].get("ctx", {}).get("error", "not JSON")
        return error_answer(
            _id_of(request),
            status=400,
            code="invalid_json",
            message=f"the body is not valid JSON: {reason} at character {position}",
        )
    if _wants_json(request, found):
        return error_answer(
            _id_of(request),
            status=415,
            code="unsupported_media_type",
            message="send the body as JSON with Content-Type: application/json",
            param="content-type",
        )
    details = problems_of(found)
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    first = details[0]
    return error_answer(
        _id_of(request),
        status=400,
        code="unsupported" if first["code"] == "unsupported" else "bad_input",
        message=f"{first['param']}: {first['message']}{more}",
        param=first["param"],
        details=details,
    )


def _wants_json(request: Request, found: Sequence[Any]) -> bool:
    """Whether the body was there but not sent as JSON, so that the framework did not parse it."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    is_json = kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )
    return not is_json and any(
        problem["loc"] == ("body",) and problem["type"] != "missing" for problem in found
    )
