"""Rows that a vLLM server writes: taken from the same queue, answered through the same settler.

Fair shares, deadlines, cancelling, streams and leases are therefore those of all other rows. The
server only chooses tokens; the row that takes them is the one of our own decoder, so text, stops,
end tokens, counts and logprobs are told as ever. What vLLM cannot hold (anything but a plain LoRA
that covers every layer) or refuses (a rank or a length beyond its own limits) is written here.
A delta is checked against its digest before it is exported, so a receipt says what was handed over;
it cannot say what lies in vLLM's memory.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import aclosing, suppress
from pathlib import Path

from core.errors import Unavailable
from inference.runner import Asked, Settler
from inference.scheduler import Scheduler
from inference.tickets import Work
from inference.vllm import RefusedError, UnknownModelError, VllmServer
from inference.vllm_adapters import ServerAdapters
from peft_engine.decoding import DecodingRow
from peft_engine.serving import Engine, PreparedRow, Writing

_log = logging.getLogger(__name__)

AT_ONCE = 256
"""Rows that the server has at once; it queues what does not fit into its own batch."""


class Forwarder:
    """Hands rows of one base to a vLLM server, in a thread with an event loop of its own.

    Args:
        scheduler: Where rows come from.
        settler: Where answers go.
        url: Where the server listens.
        key: What the server was given as ``--api-key``; None: nothing.
        base_model: Our name of the base that it serves.
        folder: Where adapters are written for it; it must see the same path.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        settler: Settler,
        *,
        url: str,
        key: str | None = None,
        base_model: str,
        folder: Path,
    ) -> None:
        self._scheduler = scheduler
        self._settler = settler
        self._server = VllmServer(url, key=key)
        self._adapters = ServerAdapters(self._server, folder)
        self._base_model = base_model
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._wake: Callable[[], None] = lambda: None
        self._ended_at = time.monotonic()
        self._thread = threading.Thread(target=self._main, name="forwarder", daemon=True)
        scheduler.on_work(lambda: self._wake())

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_seconds: float) -> None:
        """End; rows that are being written are given up.

        Args:
            timeout_seconds: How long to wait for the thread.
        """
        self._stopping = True
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)

    def takes(self, engine: Engine, row: PreparedRow) -> bool:
        """Whether the server can write a row; exports its delta if it is the first to ask for it.

        Args:
            engine: The engine of the row's base.
            row: The row.

        Returns:
            True when it can.
        """
        if row.kind != "generate" or engine.base.name != self._base_model:
            return False
        return row.delta is None or self._adapters.may_hold(engine.base, row.delta)

    # ---- the thread ----

    def _main(self) -> None:
        try:
            asyncio.run(self._work())
        except Exception:  # noqa: BLE001 - edge of a thread: rows must not wait for a dead one
            _log.critical("the forwarder died", exc_info=True)
            self._scheduler.close(Unavailable("the inference process is failing"))

    async def _work(self) -> None:
        loop, awake = asyncio.get_running_loop(), asyncio.Event()
        self._wake = lambda: _soon(loop, awake.set)
        try:
            while not self._stopping:
                awake.clear()
                while len(self._tasks) < AT_ONCE and (work := self._next()):
                    if not self._tasks:
                        self._ended_at = time.monotonic()  # idle until now
                    self._begin(work, loop).add_done_callback(lambda _: awake.set())
                await awake.wait()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._server.close()

    def _next(self) -> Work | None:
        return self._scheduler.take_row("forwarded", lambda _: True)

    def _begin(self, work: Work, loop: asyncio.AbstractEventLoop) -> "asyncio.Task[None]":
        task = loop.create_task(self._answer(work))

        def ended(_: object) -> None:
            self._tasks.discard(task)
            if task.cancelled():  # nobody waits for it any more, or the process ends
                self._scheduler.fail(work, Unavailable("the inference process is shutting down"))

        self._tasks.add(task)
        task.add_done_callback(ended)
        # a request that is over gives its rows up, also while the server says nothing
        work.owner_ticket().answers.add_done_callback(lambda _: _soon(loop, task.cancel))
        return task

    async def _answer(self, work: Work) -> None:
        writing = _unwritten(work)
        try:
            try:
                await self._attempt(writing)
            except UnknownModelError:
                # the server was started again: it has to be told of the adapter once more
                writing = _unwritten(work)
                await self._attempt(writing)
        except RefusedError as error:
            if writing.output_tokens:
                self._settler.fail(work, error)
            else:
                _log.info("a row that vLLM refuses is written here: %s", error.message)
                self._scheduler.hand_over(work, "generation")
        except Exception as error:  # noqa: BLE001 - edge of a task: its request must hear of it
            self._settler.fail(work, error)
        else:
            self._settle(writing)

    def _settle(self, writing: Writing) -> None:
        work: Work = writing.payload
        asked: Asked = work.payload
        self._settler.settle(work, asked.engine.written(writing), engine="vllm")
        now = time.monotonic()
        self._scheduler.finished(1, now - self._ended_at)
        self._ended_at = now

    async def _attempt(self, writing: Writing) -> None:
        asked: Asked = writing.payload.payload
        model = await self._adapters.hold(asked.engine.base, asked.row.delta)
        try:
            await self._write_all(model.name, writing)
        except UnknownModelError:
            self._adapters.forget(model)
            raise
        finally:
            self._adapters.let_go(model)

    async def _write_all(self, model: str, writing: Writing) -> None:
        tasks = [
            asyncio.create_task(self._write(model, writing, choice)) for choice in writing.choices
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _write(self, model: str, writing: Writing, choice: DecodingRow) -> None:
        """Let the server choose the tokens of one continuation.

        Raises:
            Unavailable: The server ended before the text did.
        """
        work: Work = writing.payload
        asked: Asked = work.payload
        end_id = asked.engine.base.text.eos_id
        said = self._server.write(model, choice.prompt, choice.sampling, end_id=end_id)
        async with aclosing(said) as pieces:
            async for piece in pieces:
                for token in piece.tokens:
                    if choice.finish_reason is None:
                        choice.take(token, end_id=end_id)
                if piece.finish_reason is not None and choice.finish_reason is None:
                    choice.end(piece.finish_reason)  # at the end of its context
                work.unused = writing.unwritten_tokens
                work.owner_ticket().tell(work.position, writing.texts)
                if choice.finish_reason is not None and piece.finish_reason is None:
                    return  # a stop that it did not see: it is told by hanging up
        if choice.finish_reason is None:
            raise Unavailable("the vLLM server broke off; try again", code="inference_unavailable")


def _unwritten(work: Work) -> Writing:
    asked: Asked = work.payload
    base, row = asked.engine.base, asked.row
    choices = tuple(
        DecodingRow.of(
            list(row.examples[0].input_ids), sampling, text=base.text, device=base.device
        )
        for sampling in row.samplings
    )
    writing = Writing(row, choices, work)
    work.unused = writing.unwritten_tokens
    return writing


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody needs to know any more
        loop.call_soon_threadsafe(call)
