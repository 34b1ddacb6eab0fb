"""``python -m inference``: serve until SIGTERM or Ctrl-C, then let rows that run end, and go.

Within three seconds of its last row the process is gone. No row is waited for longer than
``inference_stop_seconds``.
"""

import asyncio
import logging
import math
import os
import signal
import socket
import sys
from types import FrameType
from typing import Any

import uvicorn

from core.heap import freeze_heap
from core.logs import configure_logging
from core.settings import Settings, load_settings
from inference.owner import SWITCH_SECONDS
from inference.parts import Parts, make_parts
from inference.server import create_app

# Rows that wait are sent away so soon: those of one forward may still begin, the others find room
# elsewhere.
_REFUSE_AFTER_SECONDS = 1.5
# In which clients are told that a row was given up, and an upload or an export may still end.
_TELL_SECONDS = 2.0
# Longer than any client keeps an idle connection: whoever closes first must be the one that sends.
KEEP_ALIVE_SECONDS = 75


class Server(uvicorn.Server):
    """uvicorn that sends waiting rows away before it ends, and ends with its owner thread."""

    def __init__(self, config: uvicorn.Config, parts: Parts) -> None:
        """Wire the server.

        Args:
            config: uvicorn's own configuration.
            parts: What answers.
        """
        super().__init__(config)
        self._parts = parts
        # Without its owner thread the process can answer nothing: end, and be started again.
        parts.owner.on_death(self.stop_soon)

    def stop_soon(self) -> None:
        """Begin the orderly end; may be called from any thread."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End in order: nobody is sent here any more, and what has begun may end.

        Args:
            sockets: Listening sockets given from outside, if any.
        """
        parts, loop = self._parts, asyncio.get_running_loop()
        parts.announcer.stop(0)
        loop.call_later(_REFUSE_AFTER_SECONDS, parts.refuse)
        loop.call_later(parts.settings.inference_stop_seconds, parts.give_up)
        await super().shutdown(sockets)


def make_server(settings: Settings, parts: Parts, **more: Any) -> Server:
    """Make the server of a process, which does not run yet.

    Args:
        settings: Where it listens, and how long rows may take to end.
        parts: What answers.
        **more: Further settings of uvicorn.

    Returns:
        The server.
    """
    config = uvicorn.Config(
        create_app(settings, parts),
        timeout_graceful_shutdown=math.ceil(settings.inference_stop_seconds + _TELL_SECONDS),
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        log_config=None,
        access_log=False,
        server_header=False,
        **more,
    )
    return Server(config, parts)


def main() -> int:
    """Serve until told to stop.

    Returns:
        0 after an orderly end, 1 when the process is to be replaced.
    """
    # uvicorn raises the signal again when it is done: an orderly end is no death by signal
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    sys.setswitchinterval(SWITCH_SECONDS)
    settings = load_settings()
    configure_logging(settings)
    parts = make_parts(settings)
    parts.bases.on_settled(freeze_heap)
    address = {"host": settings.inference_host, "port": settings.inference_port}
    server = make_server(settings, parts, **address)
    server.run()
    return 0 if server.started and not parts.owner.died else 1


def _end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 handler
    raise SystemExit(0)


if __name__ == "__main__":
    try:
        code = main()
    except SystemExit as ended:  # a signal, or an address that is taken
        code = ended.code if isinstance(ended.code, int) else 1
    logging.shutdown()
    sys.stdout.flush()
    # Not sys.exit: the interpreter would wait for loader threads that hang in storage, and tearing
    # torch down under a running forward ends in a crash.
    os._exit(code)
