"""The base models that this process serves.

Those of the settings are loaded one after the other at the start; the first answers while the next
one is read. Bases derived from them are loaded when a request needs one (``inference.shelf``).
"""

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from core.error_codes import ERROR_CODES
from core.errors import BadInput, Conflict, NotFound, Unavailable
from inference.owner import Owner
from inference.served import BaseLoader, BaseState, ServedBase, load_served
from inference.shelf import Shelf
from peft_engine.bases.base import Base
from peft_engine.compression.derive import describe_derived
from peft_engine.configs.base import BaseConfig, join_base_name, split_base_name
from peft_engine.errors import ConfigError
from peft_engine.serving import Engine

# A request waits so long for a base that is still being read, then it is told to come back.
LOADING_WAIT_SECONDS = 15.0
_RETRY_AFTER_SECONDS = 5


@dataclass(frozen=True, slots=True)
class HeldBase:
    """A base that a request needs.

    Attributes:
        engine: It answers.
        release: To be called once, when no row of the request waits or runs any more.
    """

    engine: Engine
    release: Callable[[], None]


class Bases:
    """All bases of the process, in the order in which they are loaded."""

    def __init__(
        self,
        known: Mapping[str, str],
        served: list[str] | None,
        loader: BaseLoader,
        *,
        budget_bytes: int,
    ) -> None:
        """Note what is to be served; nothing is loaded yet.

        Args:
            known: Every configured base, name to reference.
            served: Names that this process serves, in order; None for all.
            loader: How a base comes into memory.
            budget_bytes: Most memory of all bases together; derived ones are put out for it.
        """
        self._known = known
        names = list(known) if served is None else served
        self._served = {name: ServedBase(name, known[name]) for name in names}
        self._loader = loader
        self._derived = Shelf(loader, budget_bytes=budget_bytes, others_bytes=self._bytes)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._on_settled: Callable[[], None] = lambda: None

    def on_settled(self, callback: Callable[[], None]) -> None:
        """Set what is called, once, when every base that the settings name is loaded or given up.

        Args:
            callback: Called in the thread that loads.
        """
        self._on_settled = callback

    def start(self, owner: Owner) -> None:
        """Begin to load, in the background.

        Args:
            owner: The thread that builds the models.
        """
        self._derived.start(owner)
        self._thread = threading.Thread(
            target=self._load_all, args=(owner,), name="base-loader", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Begin no further load."""
        self._stopping.set()

    @property
    def ready(self) -> bool:
        """True when every base that the settings name can answer."""
        return all(served.state is BaseState.READY for served in self._served.values())

    def all(self) -> list[ServedBase]:
        """Every base of this process, loaded or not; derived ones last."""
        return [*self._served.values(), *self._derived.all()]

    def engines(self) -> list[Engine]:
        """The engines of the bases that are loaded now."""
        return [served.engine for served in self.all() if served.engine is not None]

    def base(self, name: str) -> Base:
        """A base that is known to be loaded.

        Args:
            name: Name of the base.

        Returns:
            The base.

        Raises:
            AssertionError: It is not loaded: a fault of the calling code.
        """
        served = self._served.get(name) or self._derived.find(name)
        if served is None or served.engine is None:
            raise AssertionError(f"the base {name!r} is not loaded")
        return served.engine.base

    def forget(self, digest: str) -> None:
        """Let go of a delta that has left the bank; on the owner thread only.

        Args:
            digest: Its digest.
        """
        for engine in self.engines():
            engine.forget(digest)

    async def hold(self, name: str) -> HeldBase:
        """Wait until a base can answer, and keep it in memory.

        Args:
            name: Name of the base, derived or not.

        Returns:
            The base.

        Raises:
            NotFound: No base of this name is configured, or its derivation means nothing.
            BadInput: It is derived in a way that nobody here can repeat.
            Conflict: It is configured, and not served by this process.
            Unavailable: It is still being loaded after a while, could not be loaded, or there is
                no memory for it.
        """  # noqa: DOC502  raised below
        try:
            parent_name, derivation = split_base_name(name)
        except ValueError as error:
            raise NotFound(
                f"no base model is called {name!r}: {error}",
                code="base_not_found",
                param="base_model",
            ) from error
        parent = self._find(parent_name)
        engine = await _arrived(parent)
        if not derivation.is_derived:
            return HeldBase(engine, lambda: None)
        _check_derivation(engine.base, derivation)  # before another base is put out for it
        served = self._derived.acquire(join_base_name(parent_name, derivation), parent)
        try:
            engine = await _arrived(served)
        except BaseException:  # cancelled too
            self._derived.release(served)
            raise
        return HeldBase(engine, lambda: self._derived.release(served))

    def _find(self, name: str) -> ServedBase:
        served = self._served.get(name)
        if served is None and name in self._known:
            raise Conflict(
                f"this process does not serve the base model {name!r}; it serves "
                f"{', '.join(self._served)}",
                code="base_not_served",
                param="base_model",
            )
        if served is None:
            raise NotFound(
                f"no base model is called {name!r}; there are {', '.join(self._known)}",
                code="base_not_found",
                param="base_model",
            )
        return served

    def _bytes(self) -> int:
        return sum(served.bytes or 0 for served in self._served.values())

    def _load_all(self, owner: Owner) -> None:
        for served in self._served.values():
            if self._stopping.is_set():
                return
            load_served(served, self._loader, owner)
        self._on_settled()


def _check_derivation(parent: Base, derivation: BaseConfig) -> None:
    """Refuse a derived base whose name does not say all that is to be done.

    Raises:
        BadInput: Pruning does not say which rows decide.
    """
    try:
        describe_derived(parent.info, derivation)
    except ConfigError as error:
        raise BadInput(error.message, code=error.code, param=error.param) from error


async def _arrived(served: ServedBase) -> Engine:
    """The engine of a base that can answer.

    Raises:
        BadInput: It is derived in a way that nobody here can repeat: to ask again does not help.
        Unavailable: It cannot yet, or never will.
    """
    if not served.loaded.done():
        await asyncio.wait({asyncio.wrap_future(served.loaded)}, timeout=LOADING_WAIT_SECONDS)
    if served.state is BaseState.FAILED:
        message = f"the base model {served.name!r} cannot be served: {served.error}"
        known = ERROR_CODES.get(served.error_code or "")
        if served.is_derived and known is not None and known.status == 400:
            raise BadInput(message, code=served.error_code, param="base_model")
        raise Unavailable(
            message,
            code="base_unavailable",
            retry_after_seconds=60,
        )
    if served.engine is None:
        raise Unavailable(
            f"the base model {served.name!r} is still being loaded; try again in "
            f"{_RETRY_AFTER_SECONDS} s",
            code="base_loading",
            retry_after_seconds=_RETRY_AFTER_SECONDS,
        )
    return served.engine
