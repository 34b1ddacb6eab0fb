"""Server-sent events: the story of a job, live. Between two looks no database session is held."""

import json
from collections.abc import AsyncIterator
from contextlib import suppress
from time import monotonic

import anyio
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import format_sse_event

from app.schemas.jobs import EventAnswer
from app.services import job_answers
from app.services.callers import Caller
from app.services.parts import Parts
from core.db import tenants
from core.errors import Unavailable
from core.states import TERMINAL, JobStatus

LOOK_SECONDS = 0.5
"""How long an event waits at most before it is sent."""

HEARTBEAT_SECONDS = 10.0
"""Below the 15 s of the contract, and below the idle limits of common proxies."""

RETRY_MILLISECONDS = 3000
BATCH_EVENTS = 200


async def stream_events(
    parts: Parts, *, caller: Caller, job_id: str, after_seq: int
) -> AsyncIterator[bytes]:
    """Send every event after a number, then those that happen, until the job or the key has ended.

    A key that was revoked ends the stream without a word: whoever comes back to resume it is told.

    Args:
        parts: Where events are.
        caller: Who asks.
        job_id: Which job; must exist.
        after_seq: The last number that the client has.

    Yields:
        Bytes in the format of server-sent events; ``id`` is the number to resume from.
    """
    yield format_sse_event(retry=RETRY_MILLISECONDS, comment="events of a job")
    sent_at = monotonic()
    status: JobStatus | None = None
    while True:
        found: list[EventAnswer] = []
        has_more, may_ask = False, True
        # a database that is away for a moment does not end the stream: it beats, and goes on later
        with suppress(Unavailable):
            may_ask, found, has_more, status = await run_in_threadpool(
                _look, parts, caller, job_id, after_seq
            )
        if not may_ask:
            return
        for event in found:
            after_seq = event.seq
            yield format_sse_event(
                id=str(event.seq), event=event.event, data_str=event.model_dump_json()
            )
            sent_at = monotonic()
        if has_more:
            continue
        if status in TERMINAL:
            return
        if monotonic() - sent_at >= HEARTBEAT_SECONDS:
            yield format_sse_event(event="heartbeat", data_str=json.dumps({"status": status}))
            sent_at = monotonic()
        await anyio.sleep(LOOK_SECONDS)


def _look(
    parts: Parts, caller: Caller, job_id: str, after_seq: int
) -> tuple[bool, list[EventAnswer], bool, JobStatus]:
    """Whether the caller may still ask, events, whether there are more, and how the job stands."""
    with parts.database.read() as session:
        may_ask = caller.key_id is None or tenants.is_valid(
            session, caller.tenant_id, caller.key_id
        )
        found, has_more, status = job_answers.read_events(
            session,
            tenant_id=caller.tenant_id,
            job_id=job_id,
            after_seq=after_seq,
            limit=BATCH_EVENTS,
        )
        return may_ask, found, has_more, status
