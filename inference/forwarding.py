"""Rows that a vLLM server writes: taken from the same queue, answered through the same settler.

Fair shares, deadlines, cancelling, streams and leases are therefore those of all other rows. What
vLLM cannot hold (anything but a plain LoRA that covers every layer) is written here as ever.
A delta is checked against its digest before it is exported, so a receipt says what was handed over;
it cannot say what lies in vLLM's memory.
"""

import asyncio
import logging
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from core.errors import Unavailable
from inference.runner import Asked, Settler
from inference.scheduler import Scheduler
from inference.tickets import Work
from inference.vllm import Piece, UnknownModelError, VllmServer
from peft_engine.bases.base import Base
from peft_engine.delta import Delta
from peft_engine.exchange.findings import Findings
from peft_engine.exchange.peft_export import write_peft
from peft_engine.generation import Sampling
from peft_engine.serving import Answer, Engine, PreparedRow

_log = logging.getLogger(__name__)

AT_ONCE = 256
"""Rows that the server has at once; it queues what does not fit into its own batch."""
MAX_LOADED = 256
"""Adapters that it knows at once; those asked longest ago are let go first."""


@dataclass(eq=False)
class _Loaded:
    """An adapter that the server knows, or is being told."""

    ready: "asyncio.Task[None]"
    rows: int = 0


@dataclass
class _Choice:
    """One continuation as far as it has come."""

    text: str = ""
    finish_reason: str | None = None
    tokens: int = 0
    logprobs: list[dict[str, object]] | None = None

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.finish_reason = piece.finish_reason or self.finish_reason
        self.tokens = self.tokens if piece.output_tokens is None else piece.output_tokens
        if self.logprobs is not None:
            self.logprobs += piece.logprobs

    def output(self) -> dict[str, object]:
        found: dict[str, object] = {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "tokens": self.tokens,
        }
        return found if self.logprobs is None else found | {"logprobs": self.logprobs}


class Forwarder:
    """Hands rows of one base to a vLLM server, in a thread with an event loop of its own.

    Args:
        scheduler: Where rows come from.
        settler: Where answers go.
        url: Where the server listens.
        base_model: Our name of the base that it serves.
        folder: Where adapters are written for it; it must see the same path.
    """

    def __init__(
        self, scheduler: Scheduler, settler: Settler, *, url: str, base_model: str, folder: Path
    ) -> None:
        self._scheduler = scheduler
        self._settler = settler
        self._url = url
        self._base_model = base_model
        self._folder = folder
        self._exporting = threading.Lock()
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()
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
        return row.delta is None or self._export(engine.base, row.delta)

    # ---- exporting, in any thread ----

    def _export(self, base: Base, delta: Delta) -> bool:
        """Write a delta where the server finds it; False when vLLM cannot hold it."""
        methods = delta.manifest.methods
        if [method.type for method in methods] != ["lora"] or delta.manifest.head is not None:
            return False
        with self._exporting:
            if self._folder_of(delta).is_dir():
                return True
            self._folder.mkdir(parents=True, exist_ok=True)
            unfinished = Path(mkdtemp(dir=self._folder, prefix="unfinished-"))
            found = Findings()
            write_peft(base, delta, unfinished, found, portable=True)
            if found.problems:
                shutil.rmtree(unfinished)
                return False
            unfinished.chmod(0o755)  # the server may run as another user
            unfinished.rename(self._folder_of(delta))
            return True

    def _folder_of(self, delta: Delta) -> Path:
        return self._folder / delta.digest.replace(":", "-")

    # ---- the thread ----

    def _main(self) -> None:
        try:
            asyncio.run(self._work())
        except Exception:  # noqa: BLE001 - edge of a thread: rows must not wait for a dead one
            _log.critical("the forwarder died", exc_info=True)
            self._scheduler.close(Unavailable("the inference process is failing"))

    async def _work(self) -> None:
        loop, awake = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(awake.set)

        self._wake = wake
        server = VllmServer(self._url)
        try:
            while not self._stopping:
                awake.clear()
                while len(self._tasks) < AT_ONCE and (work := self._next()):
                    task = asyncio.create_task(self._answer(server, work))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                    task.add_done_callback(lambda _: awake.set())
                await awake.wait()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await server.close()

    def _next(self) -> Work | None:
        return self._scheduler.take_row("forwarded", lambda _: True)

    async def _answer(self, server: VllmServer, work: Work) -> None:
        asked: Asked = work.payload
        try:
            try:
                choices = await self._attempt(server, work)
            except UnknownModelError:
                # the server was started again: it has to be told of the adapter once more
                self._loaded.pop(_name_of(asked), None)
                choices = await self._attempt(server, work)
        except asyncio.CancelledError:
            self._scheduler.fail(work, Unavailable("the inference process is shutting down"))
            raise
        except Exception as error:  # noqa: BLE001 - edge of a task: its request must hear of it
            self._settler.fail(work, error)
        else:
            self._settle(work, asked, choices)

    def _settle(self, work: Work, asked: Asked, choices: list[_Choice]) -> None:
        outputs = [choice.output() for choice in choices]
        written = sum(choice.tokens for choice in choices)
        most = sum(own.max_new_tokens for own in asked.row.samplings)
        self._scheduler.refund(work, most - written)
        output = outputs[0] if len(outputs) == 1 else outputs[0] | {"choices": outputs}
        answer = Answer(output, asked.row.input_tokens, written)
        self._settler.settle(work, answer, engine="vllm")
        now = time.monotonic()
        self._scheduler.finished(1, now - self._ended_at)
        self._ended_at = now

    async def _attempt(self, server: VllmServer, work: Work) -> list[_Choice]:
        asked: Asked = work.payload
        model = await self._hold(server, asked)
        try:
            return await self._write_all(server, model, work)
        finally:
            self._let_go(model)

    async def _write_all(self, server: VllmServer, model: str, work: Work) -> list[_Choice]:
        asked: Asked = work.payload
        choices = [
            _Choice(logprobs=None if own.logprobs is None else []) for own in asked.row.samplings
        ]

        async def write(place: int, sampling: Sampling) -> None:
            prompt = asked.row.examples[0].input_ids
            async with aclosing(server.write(model, prompt, sampling)) as pieces:
                async for piece in pieces:
                    choices[place].add(piece)
                    ticket = work.owner_ticket()
                    if ticket.over:
                        raise Unavailable("nobody waits for this row any more")
                    ticket.tell(work.position, tuple(choice.text for choice in choices))

        tasks = [
            asyncio.create_task(write(place, sampling))
            for place, sampling in enumerate(asked.row.samplings)
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return choices

    async def _hold(self, server: VllmServer, asked: Asked) -> str:
        """The name under which the server has who answers; adapters are loaded if need be."""
        delta = asked.row.delta
        if delta is None:
            return await server.base_name()
        name = _name_of(asked)
        if name not in self._loaded:
            await self._make_room(server)
        if name not in self._loaded:
            load = server.load(name, self._folder_of(delta))
            self._loaded[name] = _Loaded(asyncio.create_task(load))
        loaded = self._loaded[name]
        loaded.rows += 1
        self._loaded.move_to_end(name)
        try:
            await asyncio.shield(loaded.ready)
        except BaseException:
            loaded.rows -= 1
            if loaded.ready.done():
                self._loaded.pop(name, None)  # the next row tries again
            raise
        return name

    def _let_go(self, name: str) -> None:
        if name in self._loaded:
            self._loaded[name].rows -= 1

    async def _make_room(self, server: VllmServer) -> None:
        idle = [name for name, loaded in self._loaded.items() if not loaded.rows]
        while len(self._loaded) >= MAX_LOADED and idle:
            name = idle.pop(0)
            del self._loaded[name]
            await server.unload(name)


def _name_of(asked: Asked) -> str:
    """An adapter is called by what it holds, so that the server never has an old one by a name."""
    return asked.row.delta.digest if asked.row.delta else ""
