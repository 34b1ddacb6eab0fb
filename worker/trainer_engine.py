"""``peft_engine`` behind the seam of ``worker.engine``: the only module of the worker with torch.

Loaded by name in the trainer child (see ``worker.trainer``), never by the supervisor.
"""

import gc
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal, cast

import torch

from core.settings import Settings
from peft_engine.bases.base import Base
from peft_engine.certificate import Certificate, certify
from peft_engine.compression.derive import load_derived
from peft_engine.compression.watch import UNWATCHED, Watch
from peft_engine.configs import JobSpec
from peft_engine.configs.base import split_base_name
from peft_engine.delta import Delta, load_delta, save_delta
from peft_engine.router import Router
from peft_engine.runtime import pick_device, pick_precision, pin_threads
from peft_engine.serving import Engine
from peft_engine.training import (
    Assignment,
    Bounds,
    Entrant,
    Exactness,
    FeatureStore,
    Limits,
    TrainingEvent,
    TrainingResult,
    estimate,
    train_together,
)
from peft_engine.training.base_report import report_base
from worker.derived_bases import DerivedBases
from worker.engine import Entry
from worker.followers import lead

_log = logging.getLogger(__name__)

_PACKAGES = ("tunery", "torch", "transformers", "tokenizers", "numpy")
"""Those that compute: another version may add in another order, or cut texts otherwise."""


@dataclass(frozen=True)
class WarmBase:
    """A base model with what stays useful from job to job.

    Attributes:
        base: The frozen base.
        router: Its one router: hooks are put into a base once.
        features: Frozen features of recent data sets, so that a second job on one starts at once.
        exactness: Whether batches of several jobs may share its products.
    """

    base: Base
    router: Router
    features: FeatureStore
    exactness: Exactness

    @property
    def fingerprint(self) -> str:
        """Digest of weights, shape and tokenizer."""
        return self.base.fingerprint


class PeftEngine:
    """Loads base models and trains on them; used by the trainer's main thread only."""

    def __init__(self, settings: Settings) -> None:
        """Make the engine and fix its thread count: sums are then added in one order.

        Args:
            settings: Base models, device and threads.
        """
        self._settings = settings
        self._derived = DerivedBases(settings)
        threads = pin_threads(settings.threads)
        _log.info("trainer on torch %s with %d threads", torch.__version__, threads)

    def environment(self) -> dict[str, Any]:
        """Tell what may change the last bits of a result.

        Returns:
            Versions of the packages that compute, device, threads, and what the processor can.
        """
        device = pick_device(self._settings.device)
        named = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return {
            **{package: metadata.version(package) for package in _PACKAGES},
            "python": platform.python_version(),
            "device": named,
            "threads": torch.get_num_threads(),
            "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        }

    def load_base(self, name: str, precision: str, watch: Watch = UNWATCHED) -> WarmBase:
        """Load a base model by its name in the settings, and derive from it.

        Args:
            name: A key of ``settings.base_models``, or ``key@derivation``.
            precision: ``auto``, ``fp32`` or ``bf16``.
            watch: Told of each part of a derivation, and asked between them.

        Returns:
            The base, frozen.

        Raises:
            BaseModelError: There is no such base here, or it cannot be loaded.
            MemoryError: It does not fit beside what is loaded.
        """  # noqa: DOC502  raised below
        try:
            base = self._load(name, cast(Literal["auto", "fp32", "bf16"], precision), watch)
        except torch.OutOfMemoryError as error:
            raise MemoryError(f"base model {name} does not fit") from error
        return WarmBase(
            base=base, router=Router(base.trunk), features=FeatureStore(), exactness=Exactness()
        )

    def _load(
        self, name: str, precision: Literal["auto", "fp32", "bf16"], watch: Watch = UNWATCHED
    ) -> Base:
        parent, derivation = split_base_name(name)
        info = self._derived.describe(parent)
        plan = self._derived.plan_of(info, derivation)
        device = self._settings.device
        return load_derived(
            info, derivation, plan=plan, device=device, precision=precision, watch=watch
        )

    def settle_base(
        self,
        base: WarmBase,
        spec: JobSpec,
        splits: Mapping[str, Sequence[dict[str, Any]]],
        *,
        watch: Watch,
    ) -> JobSpec:
        """Decide on which base a job trains, where its training rows have a say in that.

        Args:
            base: The base as published.
            spec: The job.
            splits: Canonical records.
            watch: Told of each part, and asked between forwards.

        Returns:
            The job; its ``base`` names the rows.
        """
        return self._derived.settle(base.base, spec, splits, watch=watch)

    def train_together(
        self,
        base: WarmBase,
        *,
        arrivals: Callable[[], Sequence[Entry]],
        on_room: Callable[[int], None],
        checkpoint_seconds: float,
    ) -> None:
        """Train jobs until none is left.

        Args:
            base: What ``load_base`` returned.
            arrivals: Asked between steps for jobs that shall join.
            on_room: Told how many more jobs would do well beside those at work.
            checkpoint_seconds: Least time between two checkpoints of a job.
        """
        train_together(
            base.base,
            arrivals=lambda: [
                entrant for entry in arrivals() if (entrant := self._entrant(entry)) is not None
            ],
            limits=Limits(
                jobs=self._settings.jobs_together,
                step_bytes=self._settings.jobs_together_bytes,
            ),
            features=base.features,
            router=base.router,
            exactness=base.exactness,
            checkpoint_seconds=checkpoint_seconds,
            on_room=on_room,
        )

    def estimate(
        self,
        base: WarmBase,
        spec: JobSpec,
        splits: Mapping[str, Sequence[dict[str, Any]]],
        *,
        parent: Delta | None,
        check: Callable[[], None],
    ) -> dict[str, Any]:
        """Measure what a job would take.

        Args:
            base: What ``load_base`` returned; it is left as it is.
            spec: The job.
            splits: Canonical records.
            parent: What ``load_delta`` returned, for a job that continues from an adapter.
            check: Called before each forward; may raise to interrupt.

        Returns:
            The estimate, and on which device it was measured.
        """
        found = estimate(
            base.base,
            spec,
            splits,
            bounds=Bounds(seconds=self._settings.estimate_seconds),
            check=check,
            router=base.router,
            parent=parent,
        )
        return {**found.as_json(), "device": self.environment()["device"]}

    def _entrant(self, entry: Entry) -> Entrant | None:
        """The job for the company; None when its other processes could not start."""
        assigned = Assignment(
            spec=entry.spec,
            splits=entry.splits,
            control=cast(Callable[[], Literal["cancel", "pause", "drain"] | None], entry.control),
            emit=entry.emit,
            checkpoints=entry.checkpoints,
            parent=entry.parent,
        )
        if entry.spec.training.devices == 1:
            return Entrant(assigned, entry.ended)
        others = ExitStack()
        try:
            world = others.enter_context(lead(self._settings, entry.spec, tick=entry.control))
        except Exception as error:  # noqa: BLE001 the edge of a job: the others go on
            entry.ended(error)
            return None
        told = f"{world.size} devices train this job, each with its share of every batch"
        entry.emit(TrainingEvent("log", {"level": "info", "message": told}))

        def ended(result: TrainingResult | Exception) -> None:
            others.close()  # what certifies and publishes needs no others
            entry.ended(result)

        return Entrant(assigned, ended, world)

    def report_base(
        self,
        untouched: WarmBase,
        base: WarmBase,
        result: TrainingResult,
        splits: Mapping[str, Sequence[dict[str, Any]]],
        *,
        check: Callable[[], None],
    ) -> dict[str, Any] | None:
        """Compare a base as published, a base derived from it, and that with the job's delta.

        Args:
            untouched: The base as published.
            base: The derived base that the job trained on.
            result: What ``train`` returned.
            splits: Canonical records.
            check: Called before each forward; may raise to interrupt.

        Returns:
            Quality, bytes and latency of the three; None without test rows.
        """
        if result.delta is None or not splits.get("test"):
            return None
        return report_base(
            untouched.base,
            base.base,
            result.delta,
            splits,
            routers=(untouched.router, base.router),
            features=(untouched.features, base.features),
            tuned=result.metrics["test"]["after"],
            check=check,
        )

    def load_delta(self, data: bytes) -> Delta:
        """Return the delta of a file, its digest computed from what was read."""
        return load_delta(data)

    def save_delta(self, delta: Delta) -> bytes:
        """Return the file of a delta; equal deltas give equal bytes."""
        return save_delta(delta)

    def certify(
        self,
        base: WarmBase,
        delta: Delta,
        data: bytes,
        splits: Mapping[str, Sequence[dict[str, Any]]],
        *,
        check: Callable[[], None],
    ) -> Certificate:
        """Replay held-out rows through the serving path and compare with the trainer's own.

        Args:
            base: The base that it was trained on.
            delta: As it came out of training.
            data: The file that will be published.
            splits: Canonical records; the first of test, validation and train that has any is used.
            check: Called before each forward; may raise to interrupt.

        Returns:
            The certificate, passed or not.
        """
        named = (splits.get(name) for name in ("test", "validation", "train"))
        records = next((found for found in named if found), [])
        return certify(
            delta,
            data,
            records,
            base=base.base,
            router=base.router,
            served=self._serving(base),
            check=check,
        )

    def _serving(self, warm: WarmBase) -> Engine:
        """An engine as an inference process on this machine would make it."""
        base, settings = warm.base, self._settings
        precision = pick_precision(
            settings.inference_precision, device=base.device, parameters=base.parameters
        )
        if precision == base.precision:
            return Engine(base, router=warm.router)
        try:
            return Engine(self._load(base.name, precision))
        except (torch.OutOfMemoryError, MemoryError):
            # Hours of training must not be lost to a check: it is made in the trainer's own
            # arithmetic, and the certificate says so.
            _log.warning(
                "no memory for %s in %s: certified in %s", base.name, precision, base.precision
            )
            return Engine(base, router=warm.router)

    def tidy(self) -> None:
        """Give back memory that the last job left in caches."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
