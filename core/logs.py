"""Logs of every process: one line per event on stderr, JSON when the settings say so.

Tracebacks stand in logs and only there; what a caller reads is the message of a ``ServiceError``.
"""

import logging
import sys

import structlog

from core.settings import Settings, explain_unknown_variables

_log = logging.getLogger(__name__)


def configure_logging(settings: Settings) -> None:
    """Send this process's logs to stderr; its first lines are of variables that nothing reads.

    Args:
        settings: ``log_json`` chooses the form.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if settings.log_json:
        # what a line says in words, such as a request's status, as fields to search by
        shared += [structlog.stdlib.ExtraAdder(), _without_colours]
        final: list[structlog.typing.Processor] = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    else:
        # Plain: the default prints local variables, and those are the users' records.
        plain = structlog.dev.plain_traceback
        final = [structlog.dev.ConsoleRenderer(colors=False, exception_formatter=plain)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # its command line has given it handlers before we are asked: tracebacks in a form of their own
    server = logging.getLogger("uvicorn")
    server.handlers.clear()
    server.propagate = True
    # it writes a line for every call of inference, the probes of /readyz among them
    logging.getLogger("httpx").setLevel(logging.WARNING)
    for told in explain_unknown_variables():
        _log.warning("%s", told)


def _without_colours(
    _logger: structlog.typing.WrappedLogger, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Leave out what Uvicorn adds for terminals: the same words with escape codes."""
    event.pop("color_message", None)
    return event
