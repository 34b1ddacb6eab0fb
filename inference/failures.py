"""From the engine's errors to the service's, and to the row they belong to."""

from core.errors import BadInput, Internal, ServiceError, Unavailable
from peft_engine.errors import EngineError


def at_row(error: ServiceError, row: int, *, field: str | None = None) -> ServiceError:
    """Copy an error with the row it is about (one load may fail several requests at once).

    Args:
        error: What went wrong; its ``param`` is taken as relative to the row.
        row: Place of the row in the request, from 0.
        field: What of the row it is about when it does not say; None for the row as a whole.

    Returns:
        The same error with ``param`` ``rows.<row>…``.
    """
    where = error.param or field
    param = f"rows.{row}.{where}" if where else f"rows.{row}"
    return type(error)(
        error.message,
        code=error.code,
        status=error.status,
        param=param,
        details=error.details,
        retry_after_seconds=error.retry_after_seconds,
    )


def of_forward(error: Exception) -> ServiceError:
    """Turn what the check or the forward of a row raised into an answer for the client.

    Args:
        error: Anything.

    Returns:
        The service's error; the engine's codes pass through, and the inside stays inside.
    """
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, EngineError):
        return BadInput(error.message, code=error.code, param=error.param)
    if isinstance(error, UnicodeError):
        return BadInput("the text is not valid Unicode: half of a surrogate pair", param="input")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Unavailable(
            "the device has too little free memory for this row; shorten it or try again",
            code="device_full",
        )
    return Internal("the model failed on this row")


def unwanted() -> ServiceError:
    """What a row is told whose request is over, though nobody reads it.

    Returns:
        The error.
    """
    return Unavailable("nobody waits for this row any more", code="request_cancelled")
