"""Every failure in one shape: ``{"error": {"message", "type", "code", "param", "details"?}}``."""

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from core.errors import BadInput, Internal, NotFound, ServiceError, TooLarge

_log = logging.getLogger(__name__)

_CODES = {
    "missing": "missing_field",
    "extra_forbidden": "unknown_field",
    "json_invalid": "invalid_json",
}
_MAX_PROBLEMS = 20


def add_error_handlers(app: FastAPI) -> None:
    """Answer all failures of an application in the one shape.

    Args:
        app: The application.
    """

    @app.exception_handler(ServiceError)
    async def service_error(_: Request, error: ServiceError) -> JSONResponse:
        return answer_error(error)

    @app.exception_handler(RequestValidationError)
    async def validation_error(_: Request, error: RequestValidationError) -> JSONResponse:
        return answer_error(_of_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        return answer_error(_of_status(error))

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        _log.error("a request failed", exc_info=error)
        return answer_error(Internal("an unexpected failure in the inference process"))


def answer_error(error: ServiceError) -> JSONResponse:
    """Write an error as a response.

    Args:
        error: What failed.

    Returns:
        The response with its status, and ``Retry-After`` where trying again helps.
    """
    headers = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    return JSONResponse(error_body(error), status_code=error.status, headers=headers)


def error_body(error: ServiceError) -> dict[str, Any]:
    """An error in the one shape.

    Args:
        error: What failed.

    Returns:
        ``{"error": {…}}``.
    """
    shown: dict[str, Any] = {
        "message": error.message,
        "type": error.type,
        "code": error.code,
        "param": error.param,
        "status": error.status,
    }
    if error.details is not None:
        shown["details"] = error.details
    return {"error": shown}


def _of_validation(problems: Sequence[Any]) -> ServiceError:
    first = problems[0]
    # where the JSON breaks off is a number of characters, not a field
    param = None if first["type"] == "json_invalid" else _path(first["loc"])
    return BadInput(
        f"{param or 'body'}: {first['msg']}",
        code=_CODES.get(first["type"], "bad_input"),
        param=param,
        details=[{"param": _path(p["loc"]), "message": p["msg"]} for p in problems[:_MAX_PROBLEMS]],
    )


def _path(location: Sequence[str | int]) -> str | None:
    """``("body", "rows", 3, "input")`` is ``rows.3.input``."""
    return ".".join(str(part) for part in location[1:]) or None


def _of_status(error: HTTPException) -> ServiceError:
    if error.status_code == 404:
        return NotFound("there is no such path")
    if error.status_code == 405:
        return BadInput("this path has no such method", code="method_not_allowed", status=405)
    if error.status_code == 413:
        return TooLarge("the body is too large")
    if error.status_code < 500:
        return BadInput(str(error.detail), status=error.status_code)
    return Internal(str(error.detail), status=error.status_code)
