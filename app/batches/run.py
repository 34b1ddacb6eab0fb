"""One batch, from its claim to its end.

Requests are asked side by side and kept in the order of the file: what is kept is always the first
so many of them, which is all that another process must know to go on.
"""

import asyncio
import json
import logging
import shutil
import time
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from app.batches.checking import Checker
from app.batches.door import Door
from app.batches.ending import make_files
from app.batches.lease import Lease, Left
from app.batches.lines import Line, parse_line, read_lines
from app.batches.parts import Outcome, Part, answered, not_asked
from app.batches.stopping import Reason
from app.batches.tries import Tries
from app.openai.schemas.batches import RequestLine
from app.services.parts import Parts
from core.db import batches
from core.db.batches import Claim
from core.db.models import File
from core.states import BatchStatus
from core.storage import batch_part_key, make_scratch, remove_objects

_log = logging.getLogger(__name__)

AHEAD = 4
"""Requests of a batch that wait or have their answer while an earlier one has none, for each that
may be under way: one slow answer must not leave the others idle, and all of them stay in memory."""

_ENDS = {
    None: BatchStatus.COMPLETED,
    "cancelled": BatchStatus.CANCELLED,
    "expired": BatchStatus.EXPIRED,
}
"""How a batch ends, by why it was stopped."""

_Waiting = deque[tuple[Line, asyncio.Task[Outcome | None]]]
"""Requests that were begun, in the order of the file."""

_UNASKED = {
    "cancelled": ("batch_cancelled", "the batch was cancelled before this request was answered"),
    "expired": ("batch_expired", "the batch's window was over before this request was answered"),
}

_GIVEN_UP = {
    "code": "batch_given_up",
    "line": None,
    "message": "the process that ran the batch was lost too often at the same requests; what was "
    "answered before stands in the files",
    "param": None,
}


class BatchRun:
    """Works through a batch that this process has claimed.

    Args:
        parts: What the application works with.
        app: The application itself.
        claim: The right to write.
        tries: Asks; shared by all batches of the process.
    """

    def __init__(self, parts: Parts, app: ASGIApp, claim: Claim, tries: Tries) -> None:
        self._parts = parts
        self._claim = claim
        self._tries = tries
        self._door = Door(app, tenant_id=claim.tenant_id, endpoint=claim.endpoint)
        self._lease = Lease(parts.database, parts.settings, claim)
        self._stop = self._lease.stop
        self._kept = claim.kept
        self._part = Part(claim.kept)
        self._asking_since: float | None = None

    @property
    def tenant_id(self) -> str:
        """Whose batch it is."""
        return self._claim.tenant_id

    @property
    def is_stopped(self) -> bool:
        """Whether its place is about to be free, for whatever reason."""
        return self._stop.reason is not None

    @property
    def asking_seconds(self) -> float:
        """How long it has asked requests; 0 while its file comes and is checked, and at its end."""
        return 0.0 if self._asking_since is None else time.monotonic() - self._asking_since

    def give_way(self) -> None:
        """Begin no further request; any process goes on once those under way are kept."""
        # one that is not asking is about to end: it has made its last answer
        if self._asking_since is not None and self._stop.reason is None:
            self._stop.set("giving_way")

    def leave(self) -> None:
        """Keep what is answered and let another process go on."""
        self._stop.set("leaving")

    async def run(self) -> None:
        """Work until the batch has ended, or is left."""
        try:
            async with self._lease.held():
                await self._work()
        finally:
            await self._door.close()

    async def _work(self) -> None:
        settings = self._parts.settings
        if self._claim.losses >= settings.max_attempts:
            await self._end(BatchStatus.FAILED, errors=[_GIVEN_UP], total=1)
            return
        make_folder = partial(make_scratch, settings.data_dir, prefix="batch-")
        folder = await self._lease.surely(make_folder)
        try:
            path = folder / "requests.jsonl"
            fetch = partial(self._parts.store.fetch_to, self._claim.input_key, path)
            await self._lease.surely(fetch)
            if self._claim.is_checked or await self._check(path):
                lines = self._lines(path)
                await asyncio.to_thread(_skip, lines, self._kept)
                await self._ask_all(lines)
                await self._end(_ENDS[self._stop.reason], path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    # checking

    async def _check(self, path: Path) -> bool:
        """Whether there is anything to ask; the batch has ended otherwise.

        Raises:
            Left: The batch is to be left.
        """
        checker = Checker(
            self._parts.database,
            self._parts.settings,
            tenant_id=self._claim.tenant_id,
            endpoint=self._claim.endpoint,
            is_stopped=lambda: self._stop.reason is not None,
        )
        found = await self._lease.surely(lambda: checker.check(path))
        if self._stop.is_leaving:
            raise Left
        if self._stop.reason is not None:
            # nobody knows what stands in the file, so nothing is told of its requests
            await self._end(_ENDS[self._stop.reason])
            return False
        if found.total:
            await self._end(BatchStatus.FAILED, errors=found.errors, total=found.total)
            return False
        begin = partial(batches.move, status=BatchStatus.IN_PROGRESS, requests=found.requests)
        if await self._lease.write_surely(begin) is not BatchStatus.IN_PROGRESS:
            self._stop.set("cancelled")
        return True

    # asking

    async def _ask_all(self, lines: Iterator[Line]) -> None:
        """Ask what is left, and keep it; returns early at a stop.

        Raises:
            Left: The batch is to be left.
        """
        window = AHEAD * self._parts.settings.batch_requests_at_once
        waiting: _Waiting = deque()
        overdue = asyncio.create_task(self._stop.wait_overdue())
        self._part = Part(self._kept)
        self._asking_since = time.monotonic()
        try:
            while self._stop.reason is None and (line := next(lines, None)) is not None:
                waiting.append((line, asyncio.create_task(self._ask(line))))
                await self._gather(waiting, most=window - 1, unless=overdue)
            await self._gather(waiting, most=0, unless=overdue)
        finally:
            self._asking_since = None
            await _call_off([*(task for _, task in waiting), overdue])
        await self._keep()
        if self._stop.is_handed_on:
            raise Left

    async def _gather(self, waiting: _Waiting, *, most: int, unless: asyncio.Task[None]) -> None:
        """Take outcomes in order until at most so many are waited for.

        Those that are there are taken in any case, up to the first request that another attempt is
        to ask; ``unless`` ends the waiting. Where no attempt follows, what is not there then has no
        answer, and what is behind it is taken.
        """
        while waiting:
            line, task = waiting[0]
            if task.done():
                outcome = task.result()
                if outcome is None:
                    break
            elif unless.done() and not self._stop.is_handed_on:
                await _call_off([task])
                outcome = _unasked(_request_of(line), self._stop.reason)
            elif len(waiting) <= most or unless.done():
                break
            else:
                seconds = self._part.seconds_left() if self._part.requests else None
                ends = {task, unless}
                await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                outcome = None
            if outcome is not None:
                waiting.popleft()
                self._part.add(outcome)
            if self._part.is_due:
                await self._keep()

    async def _ask(self, line: Line) -> Outcome | None:
        """Give what became of a request; None when another attempt is to ask it."""
        request = _request_of(line)
        body = json.dumps(request.body).encode()
        answer = await self._tries.ask(self._door, body, self._stop)
        if answer is not None:
            return answered(request.custom_id, answer)
        return None if self._stop.is_handed_on else _unasked(request, self._stop.reason)

    # keeping

    async def _keep(self) -> None:
        if self._part.requests:
            await self._lease.surely(self._store_part)
            self._kept += self._part.requests
            self._part = Part(self._kept)

    def _store_part(self) -> None:
        claim, part = self._claim, self._part
        keys: dict[str, str] = {}
        for kind, content in part.content.items():
            keys[kind] = batch_part_key(claim.batch_id, claim.attempt, part.first, kind)
            self._parts.store.put_bytes(keys[kind], bytes(content))
        self._lease.write(
            partial(
                batches.keep_part,
                first=part.first,
                requests=part.requests,
                keys=keys,
                completed=part.completed,
                failed=part.failed,
            )
        )

    # ending

    async def _end(
        self,
        status: BatchStatus,
        path: Path | None = None,
        *,
        errors: list[dict[str, Any]] | None = None,
        total: int = 0,
    ) -> None:
        """Make the files and end the batch; requests of a path that were not asked are told."""
        if status is BatchStatus.COMPLETED:
            finalize = partial(batches.move, status=BatchStatus.FINALIZING)
            await self._lease.write_surely(finalize)
        # not asked again: it may become "leaving" while the files are made
        reason = self._stop.reason
        files = await self._lease.surely(partial(self._make_files, path, reason))
        why = None if errors is None else {"data": errors, "total": total}
        finish = partial(batches.finish, status=status, files=files, errors=why)
        keys = await self._lease.write_surely(finish)
        _log.info("batch %s has ended", self._claim.batch_id)
        await asyncio.to_thread(remove_objects, self._parts.store, keys)

    def _make_files(self, path: Path | None, reason: Reason | None) -> dict[str, File]:
        lines = () if path is None else islice(self._lines(path), self._kept, None)
        unasked = (_unasked(_request_of(line), reason).line for line in lines)
        return make_files(self._parts.database, self._parts.store, self._claim, unasked)

    def _lines(self, path: Path) -> Iterator[Line]:
        return read_lines(path, max_bytes=self._parts.settings.max_batch_line_bytes)


def _request_of(line: Line) -> RequestLine:
    # the file was checked, and its bytes cannot change
    if line.content is None:
        message = f"line {line.number} was found good and is too long"
        raise ValueError(message)
    return parse_line(line.content)


def _unasked(request: RequestLine, reason: Reason | None) -> Outcome:
    code, message = _UNASKED[reason or ""]
    return not_asked(request.custom_id, code=code, message=message)


async def _call_off(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _skip(lines: Iterator[Line], count: int) -> None:
    for _ in islice(lines, count):
        pass
