"""The parts of an inference process and how they are put together, started and stopped."""

import logging
from dataclasses import dataclass

from core.db import open_database
from core.errors import ServiceError, Unavailable
from core.settings import Settings
from core.storage import open_store
from inference.bank import Bank, DeltaRef, DeltaStore, Resident
from inference.bases import Bases
from inference.exchange import Exchange
from inference.forwarding import Forwarder
from inference.limits import ACCELERATOR_LIMITS, DEFAULT_LIMITS
from inference.metrics import Metrics
from inference.nodes import Announcer
from inference.owner import Owner
from inference.predictor import Predictor, takes_none
from inference.receipts import make_resident
from inference.runner import Runner, Settler
from inference.scheduler import Scheduler
from inference.served import loader_of
from inference.writers import Writers
from peft_engine.runtime import pick_device, pin_blas_threads, pin_threads
from peft_engine.tensor_file import find_data

_log = logging.getLogger(__name__)

# How long the owner thread and the announcement may still take when the process ends.
_STOP_SECONDS = 0.4


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that answers; started and stopped once."""

    settings: Settings
    scheduler: Scheduler
    owner: Owner
    bases: Bases
    bank: Bank
    predictor: Predictor
    exchange: Exchange
    metrics: Metrics
    announcer: Announcer
    forwarder: Forwarder | None = None

    def start(self) -> None:
        """Start the threads; the bases are then loaded in the background."""
        self.owner.start()
        pin_blas_threads(self.settings.threads)
        # The number of threads belongs to the thread that computes.
        self.owner.call(lambda: pin_threads(self.settings.threads))
        self.bases.start(self.owner)
        self.announcer.start()
        if self.forwarder is not None:
            self.forwarder.start()

    def refuse(self) -> None:
        """Take no more work and send away what waits."""
        self.scheduler.close(_shutting_down())

    def give_up(self) -> None:
        """End what is being written, with a clear error for whoever reads it."""
        self.owner.abandon(_shutting_down())

    def stop(self) -> None:
        """End within a second; a forward or a load that still runs is left to the process's end."""
        self.refuse()
        self.bases.stop()
        self.announcer.stop(_STOP_SECONDS)
        if self.forwarder is not None:
            self.forwarder.stop(_STOP_SECONDS)
        if not self.owner.stop(_STOP_SECONDS):
            _log.warning("the owner thread is still busy and is left behind")
        self.bank.close()
        self.predictor.close()
        self.exchange.close()


def make_parts(settings: Settings, *, store: DeltaStore | None = None) -> Parts:
    """Put the parts together; nothing is started or loaded.

    Args:
        settings: The machine's settings.
        store: Where deltas are read; None: the store that the settings name.

    Returns:
        The parts.
    """
    device = pick_device(settings.device)
    bases = Bases(
        settings.base_models,
        settings.served_base_models,
        loader_of(settings),
        budget_bytes=settings.bases_bytes,
    )
    limits = DEFAULT_LIMITS if device.type == "cpu" else ACCELERATOR_LIMITS
    scheduler = Scheduler(
        max_rows=settings.max_waiting_rows,
        max_tenant_rows=settings.max_tenant_waiting_rows,
        weights=settings.tenant_weights,
        limits=limits,
    )

    def materialize(blob: memoryview, ref: DeltaRef) -> Resident:
        # a request loads deltas only after its base is loaded
        return make_resident(blob, ref, bases.base(ref.base_model))

    bank = Bank(
        store if store is not None else open_store(settings),
        materialize,
        device_bytes=settings.bank_bytes,
        host_bytes=settings.bank_host_bytes,
        aligned=find_data,
        on_drop=lambda digest: _forget(owner, bases, digest),
    )
    settler = Settler(scheduler, bank)
    writers = Writers(scheduler, settler, bases.engines)
    runner = Runner(scheduler, settler, most_tokens=limits["encoder"].tokens)

    def step() -> bool:
        has_large = runner.go_on()
        return writers.step() or has_large

    def abandon(error: ServiceError) -> None:
        runner.abandon(error)
        writers.abandon(error)

    owner = Owner(scheduler, runner.run, go_on=step, abandon=abandon)
    forwarder = _make_forwarder(settings, scheduler, settler)
    takes = forwarder.takes if forwarder is not None else takes_none
    return Parts(
        settings=settings,
        scheduler=scheduler,
        owner=owner,
        bases=bases,
        bank=bank,
        exchange=Exchange(settings, bases=bases, owner=owner, store=open_store(settings)),
        predictor=Predictor(settings, bases=bases, bank=bank, scheduler=scheduler, forwards=takes),
        metrics=Metrics(bases=bases, bank=bank, scheduler=scheduler, writers=writers),
        announcer=Announcer(
            open_database(settings),
            url=settings.inference_url,
            device=str(device),
            bases=bases,
        ),
        forwarder=forwarder,
    )


def _shutting_down() -> Unavailable:
    return Unavailable(
        "this inference process is shutting down; try again",
        code="shutting_down",
        retry_after_seconds=2,
    )


def _make_forwarder(settings: Settings, scheduler: Scheduler, settler: Settler) -> Forwarder | None:
    if settings.vllm_url is None or settings.vllm_base_model is None:
        return None
    return Forwarder(
        scheduler,
        settler,
        url=settings.vllm_url,
        key=settings.vllm_api_key.get_secret_value() if settings.vllm_api_key else None,
        base_model=settings.vllm_base_model,
        folder=settings.vllm_adapters_dir,
    )


def _forget(owner: Owner, bases: Bases, digest: str) -> None:
    """Only the owner thread may touch what an engine keeps of a delta."""
    owner.call(lambda: bases.forget(digest))
