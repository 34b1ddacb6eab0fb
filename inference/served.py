"""One base of the process, and how it comes into memory.

Whatever takes long and needs no model (resolving files, converting a GGUF file, hashing) runs in a
thread of its own. A base of the settings is built on the owner thread, since building one changes
global state of the libraries (torch's default type, for one) while a forward may run. A derived
base is read in fp32, torch's own default, so that nothing a forward notices changes: it is built in
its loader's thread, and rows of other bases are answered meanwhile. Loads take turns either way.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

from core.errors import NotFound, ServiceError
from core.settings import Settings
from core.storage import derived_key, open_store
from inference.owner import Owner
from inference.schemas import BaseOut
from peft_engine.bases.base import Base, BaseInfo, describe_base
from peft_engine.compression.derive import describe_derived, load_derived, plan_name, plan_path
from peft_engine.compression.pruning import PruningPlan
from peft_engine.configs.base import BaseConfig, parent_name, split_base_name
from peft_engine.configs.families import tasks_of
from peft_engine.errors import EngineError
from peft_engine.parts.sites import keep_sites
from peft_engine.runtime import Precision, explain_precision
from peft_engine.serving import Engine, calibrate

_log = logging.getLogger(__name__)


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
        name: Of a derived base ``parent@derivation``.
        reference: Where the weights of the base, or of its parent, come from.
        bytes: Of its weights in memory; an estimate until it is loaded.
        loaded: Resolves when the base can answer (``engine`` is set then) or never will
            (``error`` and, where the engine or the service refused it, ``error_code`` are).
        requests: Requests in flight that need it, which keep a derived base in memory.
        precision_reason: Why it has its arithmetic; None until it is loaded.
    """

    name: str
    reference: str
    state: BaseState = BaseState.WAITING
    info: BaseInfo | None = None
    engine: Engine | None = None
    error: str | None = None
    error_code: str | None = None
    bytes: int | None = None
    load_seconds: float | None = None
    loaded: Future[None] = field(default_factory=Future)
    requests: int = 0
    precision_reason: str | None = None

    def __post_init__(self) -> None:
        # who waits for a base must not be able to cancel it for the others
        self.loaded.set_running_or_notify_cancel()

    @property
    def is_derived(self) -> bool:
        """Whether it is made from another base."""
        return "@" in self.name

    def describe(self) -> BaseOut:
        """What ``GET /bases`` says of it."""
        info, base = self.info, self.engine.base if self.engine else None
        return BaseOut(
            name=self.name,
            reference=self.reference,
            state=self.state,
            ready=self.state is BaseState.READY,
            error=self.error,
            parent=parent_name(self.name) if self.is_derived else None,
            parent_fingerprint=info.parent_fingerprint if info else None,
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
            kernel=self.engine.writer.kernel if base and base.generates and self.engine else None,
            precision_reason=self.precision_reason,
            mixes_adapters=self.engine.mixes if self.engine else None,
        )


@dataclass(frozen=True, slots=True)
class BaseLoader:
    """How a base comes into memory; the two halves may run in different threads.

    Attributes:
        calibrates: Whether to measure then if rows of different deltas are quicker together.
        turn: Held while a model is built: two at a time would undo each other's changes to the
            libraries' state.
        wanted: The precision that the settings ask for.
    """

    describe: Callable[[str, str], BaseInfo]
    load: Callable[[str, str], Base]
    calibrates: bool = False
    turn: threading.Lock = field(default_factory=threading.Lock)
    wanted: Literal["auto"] | Precision = "fp32"


def loader_of(settings: Settings) -> BaseLoader:
    """The engine's own loader with this machine's settings.

    Args:
        settings: Device, folder of models, whether a hub may be asked, and where what pruning takes
            away is stored.

    Returns:
        The loader; names may be those of derived bases.
    """

    def describe_parent(name: str, reference: str) -> BaseInfo:
        return describe_base(
            reference,
            name=parent_name(name),
            models_dir=settings.models_dir,
            allow_hub=settings.allow_hub,
        )

    def describe(name: str, reference: str) -> BaseInfo:
        parent, derivation = describe_parent(name, reference), split_base_name(name)[1]
        _fetch_plan(settings, parent, derivation)
        return describe_derived(parent, derivation)

    def load(name: str, reference: str) -> Base:
        parent, derivation = describe_parent(name, reference), split_base_name(name)[1]
        path = _fetch_plan(settings, parent, derivation)
        return load_derived(
            parent,
            derivation,
            plan=None if path is None else PruningPlan.from_bytes(path.read_bytes()),
            device=settings.device,
            precision=settings.inference_precision,
        )

    return BaseLoader(
        describe,
        load,
        settings.inference_calibration,
        wanted=settings.inference_precision,
    )


def load_served(served: ServedBase, loader: BaseLoader, owner: Owner) -> None:
    """Bring a base into memory, or note why it cannot be; in a thread that may wait.

    Args:
        served: The base; ``loaded`` is resolved at the end, unless the owner was stopped.
        loader: How.
        owner: The thread that builds the model of a base as published.
    """
    try:
        _load(served, loader, owner)
    except CancelledError:
        return  # the owner was stopped
    except Exception as error:  # noqa: BLE001 - edge of a thread: the other bases go on
        _give_up(served, error)


def _load(served: ServedBase, loader: BaseLoader, owner: Owner) -> None:
    served.state = BaseState.LOADING
    begun = time.monotonic()
    served.info = loader.describe(served.name, served.reference)
    with loader.turn:
        if served.is_derived:
            engine = _build(served, loader)
        else:
            engine = owner.call(lambda: _build(served, loader)).result()
    base = engine.base
    served.bytes = base.bytes + engine.writer.layout_bytes
    served.load_seconds = round(time.monotonic() - begun, 3)
    served.precision_reason = explain_precision(loader.wanted, base.precision, device=base.device)
    served.engine = engine
    served.state = BaseState.READY
    served.loaded.set_result(None)
    _log.info(
        "base %s ready: %d parameters, %d bytes, %s on %s (%s), %.1f s",
        served.name,
        base.parameters,
        served.bytes,
        base.precision,
        base.device,
        served.precision_reason,
        served.load_seconds,
    )


def _build(served: ServedBase, loader: BaseLoader) -> Engine:
    """The engine, with all that the first request would wait for; nobody else has it yet."""
    engine = Engine(loader.load(served.name, served.reference))
    keep_sites(engine.base.trunk)  # its adapters are checked while rows run
    if engine.base.generates:
        engine.writer.lay_out()
    if loader.calibrates:
        found = calibrate(engine)
        engine.mixes = found.mixes
        _log.info(
            "base %s: rows of several adapters take %.1f ms together and %.1f ms apart",
            served.name,
            found.mixed_seconds * 1e3,
            found.split_seconds * 1e3,
        )
    return engine


def _give_up(served: ServedBase, error: Exception) -> None:
    if isinstance(error, EngineError | ServiceError):
        served.error, served.error_code = error.message, error.code
        _log.error("base %s cannot be served: %s", served.name, error.message)
    else:
        served.error = "an unexpected failure; see the log of the process"
        _log.error("loading base %s failed", served.name, exc_info=error)
    served.state = BaseState.FAILED
    served.loaded.set_result(None)


def _fetch_plan(settings: Settings, parent: BaseInfo, derivation: BaseConfig) -> Path | None:
    """The file that says what a pruning that looked at rows takes away, from storage if need be."""
    pruning = derivation.pruning
    if pruning is None or pruning.calibration is None:
        return None
    name = plan_name(parent, pruning)
    path = plan_path(settings.models_dir, name)
    if not path.exists():
        try:
            open_store(settings).fetch_to(derived_key(name), path)
        except NotFound:
            return None
    return path
