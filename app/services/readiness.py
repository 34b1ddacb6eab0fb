"""Whether everything that the service needs answers, and which part does not."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from app.schemas.models import Check, Readiness
from app.services.parts import Parts
from core.errors import ServiceError, Unavailable

CHECK_SECONDS = 3.0
"""A probe asks every few seconds; a part that needs longer is as good as down."""

_log = logging.getLogger("tunery.readiness")


async def check_readiness(parts: Parts) -> Readiness:
    """Ask every part at the same time.

    Args:
        parts: What to ask.

    Returns:
        The state of each, and of all together.
    """
    asked: dict[str, Awaitable[None]] = {
        "database": _in_thread(parts.database.ping),
        "broker": _in_thread(lambda: _ping_broker(parts)),
        "storage": _in_thread(parts.store.ping),
        "inference": parts.inference.ready(),
    }
    found = await asyncio.gather(*(_check(name, call) for name, call in asked.items()))
    checks = dict(zip(asked, found, strict=True))
    is_ready = all(check.ok for check in found)
    return Readiness(status="ready" if is_ready else "degraded", checks=checks)


def _ping_broker(parts: Parts) -> None:
    if not parts.queue.ping():
        message = "the broker does not answer; accepted jobs are kept"
        raise Unavailable(message, code="broker_unavailable")


async def _in_thread(call: Callable[[], object]) -> None:
    await asyncio.to_thread(call)


async def _check(name: str, call: Awaitable[None]) -> Check:
    try:
        await asyncio.wait_for(call, CHECK_SECONDS)
    except TimeoutError:
        return Check(ok=False, reason="no answer in time")
    except ServiceError as error:
        return Check(ok=False, reason=error.message)
    # the edge: a part that fails in a way nobody foresaw is down, and the probe still answers
    except Exception:  # noqa: BLE001 see above
        _log.exception("check of %s failed", name)
        return Check(ok=False, reason="failed; see the log")
    return Check(ok=True)
