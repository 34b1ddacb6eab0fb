"""Every failure that a caller of the service can meet: one tree, one table of codes.

Knows the HTTP status that belongs to a failure and nothing else of HTTP; one handler in ``app``
turns a ``ServiceError`` into an answer. ``peft_engine`` has its own tree and does not know this
one.

    ServiceError
    ├── BadInput 400           what was sent cannot be used; the message says how to mend it
    ├── Unauthenticated 401    no key, or not a valid one
    ├── Forbidden 403          the key lacks the scope
    ├── NotFound 404           it does not exist, or belongs to another tenant
    ├── Conflict 409           it is in a state that forbids this; sending it again does not help
    │   └── InvalidTransition
    ├── TooLarge 413
    ├── UnsupportedMedia 415
    ├── TooMany 429            try again after ``retry_after_seconds``
    ├── Internal 500           a fault of ours
    ├── Unavailable 503        something we need is down or full; try again later
    └── TooSlow 504            not answered in time; the same again takes as long again
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from core.error_codes import ERROR_CODES


class ServiceError(Exception):
    """A failure with a stable code.

    Attributes:
        message: What failed, the value, and what to do; safe to show to any caller.
        code: Stable name out of ``ERROR_CODES``; clients may branch on it.
        status: HTTP status.
        type: Family of the failure in the words of the OpenAI error object.
        param: Name of the field or parameter at fault, dotted for nested ones.
        details: List of single problems, each a JSON object.
        retry_after_seconds: When it is worth trying again; at most 120.
    """

    default_status: ClassVar[int] = 500
    default_code: ClassVar[str] = "internal_error"
    default_type: ClassVar[str] = "server_error"
    default_retry_after_seconds: ClassVar[int | None] = None

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int | None = None,
        param: str | None = None,
        details: Sequence[dict[str, Any]] | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        """Describe a failure.

        Args:
            message: What failed, the value, and what to do.
            code: Stable name out of ``ERROR_CODES``; the default of the class when left out.
            status: HTTP status; the code's own when left out, the default of the class for a code
                that the table does not hold (the engine's codes pass through).
            param: Name of the field at fault.
            details: Single problems, each a JSON object.
            retry_after_seconds: When it is worth trying again.
        """
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        known = ERROR_CODES.get(self.code)
        self.status = status or (known.status if known else self.default_status)
        self.type = self.default_type
        self.param = param
        self.details = list(details) if details is not None else None
        self.retry_after_seconds = (
            retry_after_seconds
            if retry_after_seconds is not None
            else self.default_retry_after_seconds
        )


class BadInput(ServiceError):
    """What was sent cannot be used."""

    default_status = 400
    default_code = "bad_input"
    default_type = "invalid_request_error"


class Unauthenticated(ServiceError):
    """No key, or not a valid one."""

    default_status = 401
    default_code = "invalid_api_key"
    default_type = "authentication_error"


class Forbidden(ServiceError):
    """The key is valid and lacks the scope."""

    default_status = 403
    default_code = "missing_scope"
    default_type = "permission_error"


class NotFound(ServiceError):
    """It does not exist, or belongs to another tenant: from outside the two look alike."""

    default_status = 404
    default_code = "not_found"
    default_type = "not_found_error"


class Conflict(ServiceError):
    """It is in a state that forbids this; sending the same again does not help."""

    default_status = 409
    default_code = "conflict"
    default_type = "conflict_error"


class InvalidTransition(Conflict):
    """The table of states does not allow this move."""

    default_code = "invalid_transition"


class TooLarge(ServiceError):
    """The body, or a part of it, is larger than the limit."""

    default_status = 413
    default_code = "too_large"
    default_type = "invalid_request_error"


class UnsupportedMedia(ServiceError):
    """A media type or file format that is not understood here."""

    default_status = 415
    default_code = "unsupported_media_type"
    default_type = "invalid_request_error"


class TooMany(ServiceError):
    """A limit per time or per queue is reached."""

    default_status = 429
    default_code = "rate_limited"
    default_type = "rate_limit_error"
    default_retry_after_seconds = 1


class Internal(ServiceError):
    """A fault of ours; the message says nothing of the inside."""


class Unavailable(ServiceError):
    """Something that the service needs is down or full."""

    default_status = 503
    default_code = "unavailable"
    default_retry_after_seconds = 5


class TooSlow(ServiceError):
    """The answer took longer than anybody may wait; nobody should ask the same again by itself."""

    default_status = 504
    default_code = "deadline_exceeded"
