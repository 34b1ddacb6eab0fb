"""Which adapters a vLLM server has: written for it, loaded, counted while asked, let go.

An adapter is called by its digest, so that the server never has an old one by a name. Rows of the
plain base are asked by way of an adapter of zeros: vLLM for CPUs (0.32) lets a row without adapter
that stands in a batch with others be written by one of theirs.

Folders are never deleted here: a server that has put an adapter out of its memory reads the folder
again in the middle of a batch, and ends when it is gone.
"""

import asyncio
import logging
import shutil
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import torch

from inference.vllm import NoAdaptersError, RefusedError, VllmServer
from peft_engine.bases.base import Base
from peft_engine.delta import Delta
from peft_engine.exchange.findings import Findings
from peft_engine.exchange.peft_export import write_peft
from peft_engine.exchange.zero_lora import zero_lora

_log = logging.getLogger(__name__)

MAX_LOADED = 256
"""Adapters that the server knows at once; those asked longest ago are let go first."""

_REFUSED_SECONDS = 60.0
"""A refusal is believed for so long: loads that fail stay rare, and a server that was started again
with other limits is soon asked again."""


@dataclass(eq=False)
class Model:
    """Who answers at the server.

    Attributes:
        name: To be asked by.
        ready: The load; None for the base under its own name.
        rows: Rows that ask it now.
    """

    name: str
    ready: "asyncio.Task[None] | None" = None
    rows: int = 0


class ServerAdapters:
    """The adapters of one server; used on its event loop, but for ``may_hold``.

    Args:
        server: The server.
        folder: Where adapters are written; it must see the same path.
    """

    def __init__(self, server: VllmServer, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._exporting = threading.Lock()
        self._loaded: OrderedDict[str, Model] = OrderedDict()
        self._refused: dict[str, float] = {}
        self._zeros: dict[str, Delta] = {}

    def may_hold(self, base: Base, delta: Delta) -> bool:
        """Whether the server can be asked for a delta, as far as is known; from any thread.

        Args:
            base: The base of the delta.
            delta: A delta; it is written for the server if nobody asked for it before.

        Returns:
            False when it is no plain LoRA, or was refused a moment ago.
        """
        return self._refused.get(delta.digest, 0.0) < time.monotonic() and self._export(base, delta)

    async def hold(self, base: Base, delta: Delta | None) -> Model:
        """Have a delta, or the plain base, ready at the server.

        Args:
            base: The base.
            delta: The delta; None: the plain base.

        Returns:
            Who is to be asked; give it back with ``let_go``.

        Raises:
            NoAdaptersError: The server takes no deltas. ``RefusedError``: not this one. It may also
                be unreachable.
        """
        try:
            return await self._hold(base, self._zeros_of(base) if delta is None else delta)
        except NoAdaptersError:
            if delta is not None:
                raise
            # a server without adapters has no neighbour's that could write the row
            return Model(await self._server.base_name())

    def let_go(self, model: Model) -> None:
        """Note that a row asks no longer.

        Args:
            model: As ``hold`` gave it.
        """
        model.rows -= 1

    def forget(self, model: Model) -> None:
        """Note that the server knows a model no more.

        Args:
            model: As ``hold`` gave it.
        """
        if self._loaded.get(model.name) is model:
            del self._loaded[model.name]
        self._server.forget_base()

    async def _hold(self, base: Base, delta: Delta) -> Model:
        name = delta.digest
        if name not in self._loaded:
            await self._make_room()
        if name not in self._loaded:
            self._loaded[name] = Model(name, asyncio.create_task(self._load(base, delta)))
        model = self._loaded[name]
        model.rows += 1
        self._loaded.move_to_end(name)
        try:
            if model.ready is not None:
                await asyncio.shield(model.ready)
        except BaseException:
            self.let_go(model)
            if model.ready is not None and model.ready.done():
                self.forget(model)  # the next row tries again
            raise
        return model

    async def _load(self, base: Base, delta: Delta) -> None:
        if not await asyncio.to_thread(self.may_hold, base, delta):
            raise RefusedError("refused a moment ago, or no plain LoRA")
        try:
            await self._server.load(delta.digest, self._folder_of(delta))
        except RefusedError as error:
            now = time.monotonic()
            self._refused = {own: until for own, until in self._refused.items() if until > now}
            self._refused[delta.digest] = now + _REFUSED_SECONDS
            _log.warning("the vLLM server refuses %s: %s", delta.digest, error.message)
            raise

    async def _make_room(self) -> None:
        idle = [name for name, model in self._loaded.items() if not model.rows]
        while len(self._loaded) >= MAX_LOADED and idle:
            name = idle.pop(0)
            # another row may have come for it, or put it out, while this one waited
            if name in self._loaded and not self._loaded[name].rows:
                del self._loaded[name]
                await self._server.unload(name)

    def _zeros_of(self, base: Base) -> Delta:
        if base.fingerprint not in self._zeros:
            self._zeros[base.fingerprint] = zero_lora(base)
        return self._zeros[base.fingerprint]

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
            write_peft(base, delta.to(torch.device("cpu")), unfinished, found, portable=True)
            if found.problems:
                shutil.rmtree(unfinished)
                return False
            unfinished.chmod(0o755)  # the server may run as another user
            unfinished.rename(self._folder_of(delta))
            return True

    def _folder_of(self, delta: Delta) -> Path:
        return self._folder / delta.digest.replace(":", "-")
