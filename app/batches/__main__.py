"""``python -m app.batches``: runs batches until told to end."""

import asyncio
import logging
import signal

from app.batches.process import BatchProcess
from app.main import create_app
from core.heap import freeze_heap
from core.logs import configure_logging
from core.settings import Settings, load_settings


async def serve(settings: Settings) -> None:
    """Run batches until SIGTERM or SIGINT.

    Args:
        settings: The process's settings.
    """
    ending = asyncio.Event()
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
    # a line for each request of a file would be most of the log
    logging.getLogger("tunery.requests").setLevel(logging.WARNING)
    asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
