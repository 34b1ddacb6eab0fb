"""What wraps every request: its id, its duration, and the last catch for faults of our own.

Pure ASGI, so that streams are not buffered and an upload is not read.
"""

import logging
import re
from time import perf_counter

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.error_handlers import internal_error
from app.services.measures import Measures
from core.ids import new_id

_ACCEPTED_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""An id from outside is kept only if it can stand in a log line and in a header."""

_log = logging.getLogger("tunery.requests")


class RequestIds:
    """Gives each request an id, returns it as ``x-request-id``, logs one line and notes its time.

    An exception that nobody handled ends here as a 500 in the error shape; it is logged with its
    traceback, which never reaches the client.

    Args:
        app: What comes next.
        measures: Where durations are noted.
    """

    def __init__(self, app: ASGIApp, measures: Measures) -> None:
        self._app = app
        self._measures = measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection.

        Args:
            scope: Of the connection; only HTTP is touched.
            receive: Where the body comes from.
            send: Where the answer goes.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ACCEPTED_ID.fullmatch(given) else new_id("req")
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0
        began = perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["x-content-type-options"] = "nosniff"
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        # The edge of the process: whatever goes wrong, the client gets the error shape and the log
        # the cause.
        except Exception:
            _log.exception("%s %s failed (%s)", scope["method"], scope["path"], request_id)
            if status:
                raise
            await internal_error(request_id)(scope, receive, send_with_id)
        seconds = perf_counter() - began
        # the template of the path, which the router left in the scope
        route = getattr(scope.get("route"), "path", None)
        self._measures.note(method=scope["method"], route=route, status=status, seconds=seconds)
        fields = {
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "milliseconds": round(seconds * 1000, 1),
            "request_id": request_id,
        }
        _log.info("%s %s %d %.1f ms %s", *fields.values(), extra=fields)
