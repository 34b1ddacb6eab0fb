"""The base models that this process serves: loaded one after the other at the start.

The first base answers while the next one is read. Whatever takes long and needs no model (resolving
files, converting a GGUF file, hashing) runs in a thread of its own; the model itself is built on
the owner thread, since building one changes global state of the library while a forward may run.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from core.errors import Conflict, NotFound, ServiceError, Unavailable
from core.settings import Settings
from inference.owner import Owner
from inference.schemas import BaseOut
from peft_engine.bases.base import Base, BaseInfo, describe_base, load_base
from peft_engine.configs.families import tasks_of
from peft_engine.errors import EngineError
from peft_engine.serving import Engine

_log = logging.getLogger(__name__)

# A request waits so long for a base that is still being read, then it is told to come back.
LOADING_WAIT_SECONDS = 15.0
_RETRY_AFTER_SECONDS = 5


class BaseState(StrEnum):
    """Where a base is on its way into memory."""

    WAITING = "waiting"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(eq=False)
class ServedBase:
    """One base and what is known of it; changed by its loader only.

    Attributes:
        loaded: Resolves when the base can answer (``engine`` is set then) or never will
            (``error`` is).
    """

    name: str
    reference: str
    state: BaseState = BaseState.WAITING
    info: BaseInfo | None = None
    engine: Engine | None = None
    error: str | None = None
    bytes: int | None = None
    load_seconds: float | None = None
    loaded: Future[None] = field(default_factory=Future)

    def describe(self) -> BaseOut:
        """What ``GET /bases`` says of it."""
        info, base = self.info, self.engine.base if self.engine else None
        return BaseOut(
            name=self.name,
            reference=self.reference,
            state=self.state,
            ready=self.state is BaseState.READY,
            error=self.error,
            architecture=info.architecture if info else None,
            tasks=list(tasks_of(info.architecture)) if info else None,
            parameters=base.parameters if base else None,
            fingerprint=info.fingerprint if info else None,
            precision=base.precision if base else None,
            device=str(base.device) if base else None,
            licence=info.licence if info else None,
            max_length=info.max_length if info else None,
            bytes=self.bytes,
            load_seconds=self.load_seconds,
        )


@dataclass(frozen=True, slots=True)
class BaseLoader:
    """How a base comes into memory; the two halves run in different threads."""

    describe: Callable[[str, str], BaseInfo]
    load: Callable[[str, str], Base]


def loader_of(settings: Settings) -> BaseLoader:
    """The engine's own loader with this machine's settings.

    Args:
        settings: Device, folder of models and whether a hub may be asked.

    Returns:
        The loader.
    """
    models_dir: Path = settings.models_dir

    def describe(name: str, reference: str) -> BaseInfo:
        return describe_base(
            reference, name=name, models_dir=models_dir, allow_hub=settings.allow_hub
        )

    def load(name: str, reference: str) -> Base:
        return load_base(
            reference,
            name=name,
            models_dir=models_dir,
            device=settings.device,
            precision=settings.inference_precision,
            allow_hub=settings.allow_hub,
        )

    return BaseLoader(describe, load)


class Bases:
    """All bases of the process, in the order in which they are loaded."""

    def __init__(
        self, known: Mapping[str, str], served: list[str] | None, loader: BaseLoader
    ) -> None:
        """Note what is to be served; nothing is loaded yet.

        Args:
            known: Every configured base, name to reference.
            served: Names that this process serves, in order; None for all.
            loader: How a base comes into memory.
        """
        self._known = known
        names = list(known) if served is None else served
        self._served = {name: ServedBase(name, known[name]) for name in names}
        for served_base in self._served.values():
            # who waits for a base must not be able to cancel it for the others
            served_base.loaded.set_running_or_notify_cancel()
        self._loader = loader
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, owner: Owner) -> None:
        """Begin to load, in the background.

        Args:
            owner: The thread that builds the models.
        """
        self._thread = threading.Thread(
            target=self._load_all, args=(owner,), name="base-loader", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Begin no further load."""
        self._stopping.set()

    @property
    def ready(self) -> bool:
        """True when every base that this process shall serve can answer."""
        return all(served.state is BaseState.READY for served in self._served.values())

    def all(self) -> list[ServedBase]:
        """Every base of this process, loaded or not."""
        return list(self._served.values())

    def engines(self) -> list[Engine]:
        """The engines of the bases that are loaded now."""
        return [served.engine for served in self._served.values() if served.engine is not None]

    def base(self, name: str) -> Base:
        """A base that is known to be loaded.

        Args:
            name: Name of the base.

        Returns:
            The base.

        Raises:
            AssertionError: It is not loaded: a fault of the calling code.
        """
        served = self._served.get(name)
        if served is None or served.engine is None:
            raise AssertionError(f"the base {name!r} is not loaded")
        return served.engine.base

    def forget(self, digest: str) -> None:
        """Let go of a delta that has left the bank; on the owner thread only.

        Args:
            digest: Its digest.
        """
        for served in self._served.values():
            if served.engine is not None:
                served.engine.forget(digest)

    async def wait_for(self, name: str) -> Engine:
        """Wait until a base can answer.

        Args:
            name: Name of the base.

        Returns:
            The engine of the base.

        Raises:
            NotFound: No base of this name is configured.
            Conflict: It is configured, and not served by this process.
            Unavailable: It is still being loaded after a while, or could not be loaded.
        """
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
        if not served.loaded.done():
            await asyncio.wait({asyncio.wrap_future(served.loaded)}, timeout=LOADING_WAIT_SECONDS)
        if served.state is BaseState.FAILED:
            raise Unavailable(
                f"the base model {name!r} cannot be served: {served.error}",
                code="base_unavailable",
                retry_after_seconds=60,
            )
        if served.engine is None:
            raise Unavailable(
                f"the base model {name!r} is still being loaded; try again in "
                f"{_RETRY_AFTER_SECONDS} s",
                code="base_loading",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        return served.engine

    def _load_all(self, owner: Owner) -> None:
        for served in self._served.values():
            if self._stopping.is_set():
                return
            try:
                self._load(served, owner)
            except CancelledError:
                return  # the owner was stopped
            except Exception as error:  # noqa: BLE001 - edge of a thread: the other bases go on
                self._give_up(served, error)

    def _load(self, served: ServedBase, owner: Owner) -> None:
        served.state = BaseState.LOADING
        begun = time.monotonic()
        served.info = self._loader.describe(served.name, served.reference)
        engine = owner.call(lambda: self._build(served)).result()
        base = engine.base
        served.bytes = sum(
            weight.numel() * weight.element_size() for weight in base.model.parameters()
        )
        served.load_seconds = round(time.monotonic() - begun, 3)
        served.engine = engine
        served.state = BaseState.READY
        served.loaded.set_result(None)
        _log.info(
            "base %s ready: %d parameters, %d bytes, %s on %s, %.1f s",
            served.name,
            base.parameters,
            served.bytes,
            base.precision,
            base.device,
            served.load_seconds,
        )

    def _build(self, served: ServedBase) -> Engine:
        return Engine(self._loader.load(served.name, served.reference))

    def _give_up(self, served: ServedBase, error: Exception) -> None:
        if isinstance(error, EngineError | ServiceError):
            served.error = error.message
            _log.error("base %s cannot be served: %s", served.name, error.message)
        else:
            served.error = "an unexpected failure; see the log of the process"
            _log.error("loading base %s failed", served.name, exc_info=error)
        served.state = BaseState.FAILED
        served.loaded.set_result(None)
