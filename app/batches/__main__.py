"""``python -m app.batches``: runs batches until told to end."""

import asyncio
import logging
import os
import signal
from concurrent.futures import ThreadPoolExecutor

from app.batches.process import BatchProcess
from app.main import create_app
from core.heap import freeze_heap
from core.logs import configure_logging
from core.settings import Settings, load_settings

NICENESS = 10
"""On a machine that is shared with the api and inference, what somebody waits for comes first."""

SPARE_THREADS = 2
"""For claims, and signs of life of the inference process."""


async def serve(settings: Settings) -> None:
    """Run batches until SIGTERM or SIGINT.

    Args:
        settings: The process's settings.
    """
    ending = asyncio.Event()
    # a batch may hold a thread for minutes (its file comes, is checked, becomes another), and its
    # beats, which keep it from being taken for lost, must find one
    threads = 2 * settings.batches_at_once + SPARE_THREADS
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(threads, "thread"))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    app = create_app(settings, is_background=True)
    async with app.router.lifespan_context(app):
        freeze_heap()
        await BatchProcess(app.state.parts, app).run(ending)


def main() -> None:
    """Read the settings, and serve."""
    settings = load_settings()
    configure_logging(settings)
    os.nice(NICENESS)
    # a line for each request of a file would be most of the log
    logging.getLogger("tunery.requests").setLevel(logging.WARNING)
    asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
