"""A second implementation of the training seam: counts steps, keeps checkpoints, obeys control.

Deterministic and free of torch. What it does beside counting is steered by the job's metadata:

    trace             file that gets one line ``pid step`` for every step that is trained
    gates             folder; at a step of ``hold`` the twin waits for the file ``<step>`` there
    hold              steps to wait at, comma separated (after the step's checkpoint), still obeying
    checkpoint_every  steps between two checkpoints (default 1)
    crash_at          the process kills itself before this step, until ``gates`` holds ``mended``
    raise_at          "<step>:<memory|engine|bug>" raises that error before this step
    certify           "fails": the trained delta is refused by its certificate
    hang_at           the step never ends and never looks at control
"""

import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from core.settings import Settings
from peft_engine.compression.watch import UNWATCHED, Watch
from peft_engine.configs import HeadSpec, JobSpec, Manifest
from peft_engine.errors import BaseModelError, DeltaError, TrainingError
from worker.engine import Checkpoints, Entry, TrainedDelta, TrainingEvent

_OUTCOMES: Mapping[str, Literal["cancelled", "paused", "drained"]] = {
    "cancel": "cancelled",
    "pause": "paused",
    "drain": "drained",
}


@dataclass(frozen=True)
class TwinBase:
    """A base model without weights."""

    name: str
    fingerprint: str


@dataclass(frozen=True)
class TwinEvent:
    """An event of the twin."""

    kind: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class TwinDelta:
    """What the twin has learned: a chain of hashes over rows and steps."""

    manifest: Manifest
    state: str

    @property
    def digest(self) -> str:
        """Digest over manifest and state."""
        return "sha256:" + hashlib.sha256(self.encode()).hexdigest()

    @property
    def parameters(self) -> int:
        """All of them."""
        return 7

    @property
    def head_parameters(self) -> int:
        """Those of the head."""
        return 2

    def encode(self) -> bytes:
        """The delta's file."""
        return json.dumps([self.manifest.model_dump(mode="json"), self.state]).encode()


@dataclass(frozen=True)
class TwinDraws:
    """A metric of the twin over two resamples."""

    value: float = 1.0
    values: tuple[float, ...] = (1.0, 0.5)
    rows: int = 2
    pairing: str = "sha256:" + "0" * 64
    lower_is_better: bool = False


@dataclass(frozen=True)
class TwinCertificate:
    """Whether the file holds the delta."""

    passed: bool
    reason: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The same as JSON."""
        return {"passed": self.passed, "rows": 0}


@dataclass(frozen=True)
class TwinResult:
    """Result of a run of the twin."""

    outcome: Literal["succeeded", "cancelled", "paused", "drained"]
    delta: TwinDelta | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    test_draws: Mapping[str, Any] = field(default_factory=dict)
    validation_draws: Mapping[str, Any] = field(default_factory=dict)
    resolved: Mapping[str, Any] = field(default_factory=dict)
    trainable_parameters: int = 7
    base_parameters: int = 700


class TwinEngine:
    """Stands where ``worker.trainer_engine.PeftEngine`` stands."""

    def __init__(self, settings: Settings) -> None:
        """Make the engine.

        Args:
            settings: Names of the base models.
        """
        self._settings = settings

    def environment(self) -> dict[str, Any]:
        """Name the twin."""
        return {"twin": "1"}

    def load_base(self, name: str, precision: str, watch: Watch = UNWATCHED) -> TwinBase:
        """Return a base of that name."""
        if name not in self._settings.base_models:
            raise BaseModelError(f"no base model {name!r}", code="base_model_not_found")
        digest = hashlib.sha256(f"{name} {precision}".encode()).hexdigest()
        return TwinBase(name=name, fingerprint=f"sha256:{digest}")

    def report_base(self, *_: object, **__: object) -> None:
        """Report nothing: the twin derives no base."""

    def settle_base(
        self,
        base: TwinBase,
        spec: JobSpec,
        splits: Mapping[str, Sequence[dict[str, Any]]],
        *,
        watch: Watch,
    ) -> JobSpec:
        """Decide nothing: the twin prunes no base."""
        return spec

    def estimate(
        self,
        base: TwinBase,
        spec: JobSpec,
        splits: Mapping[str, Sequence[dict[str, Any]]],
        *,
        parent: TwinDelta | None,
        check: Callable[[], None],
    ) -> dict[str, Any]:
        """Count rows, hold at the gate ``measured``, and misbehave as at step 1 of a job."""
        manifest = _manifest_of(base, spec, splits, parent)
        run = _Run(spec, manifest, lambda: None, lambda _: None, _NoCheckpoints())
        if "trace" in spec.metadata:
            with Path(spec.metadata["trace"]).open("a") as trace:
                trace.write(f"{os.getpid()} 0\n")
        run.misbehave(1)
        while "hold" in spec.metadata:
            check()
            if (Path(spec.metadata["gates"]) / "measured").exists():
                break
            threading.Event().wait(0.01)
        return {"rows": {name: len(rows) for name, rows in splits.items()}, "parent": bool(parent)}

    def train(
        self,
        base: TwinBase,
        spec: JobSpec,
        splits: Mapping[str, Sequence[dict[str, Any]]],
        *,
        control: Callable[[], str | None],
        emit: Callable[[TrainingEvent], None],
        checkpoints: Checkpoints,
        checkpoint_seconds: float,
        parent: TwinDelta | None = None,
    ) -> TwinResult:
        """Count to ``training.max_steps``, from where a parent stood."""
        del checkpoint_seconds  # steps, not seconds, decide here
        self._is_sound = spec.metadata.get("certify") != "fails"
        manifest = _manifest_of(base, spec, splits, parent)
        run = _Run(spec, manifest, control, emit, checkpoints)
        outcome = run.train(splits)
        if outcome is not None:
            return TwinResult(outcome)
        return TwinResult(
            "succeeded",
            run.delta,
            metrics={"test": {"before": {"accuracy": 0.5}, "after": {"accuracy": 1.0}}},
            test_draws={"accuracy": TwinDraws()} if splits.get("test") else {},
            resolved=spec.model_dump(mode="json") | {"metric": "accuracy"},
        )

    def train_together(
        self,
        base: TwinBase,
        *,
        arrivals: Callable[[], Sequence[Entry]],
        on_room: Callable[[int], None],
        checkpoint_seconds: float,
    ) -> None:
        """Train one job after another; there is never room for two."""
        on_room(0)
        while entries := arrivals():
            for entry in entries:
                result: TwinResult | Exception
                try:
                    result = self.train(
                        base,
                        entry.spec,
                        entry.splits,
                        control=entry.control,
                        emit=entry.emit,
                        checkpoints=entry.checkpoints,
                        checkpoint_seconds=checkpoint_seconds,
                        parent=entry.parent,
                    )
                except Exception as error:  # noqa: BLE001 as the engine does it
                    result = error
                entry.ended(result)

    def load_delta(self, data: bytes) -> TwinDelta:
        """Return the delta of a file."""
        try:
            manifest, state = json.loads(data)
        except ValueError as error:
            raise DeltaError("no twin's delta", code="delta_corrupt") from error
        return TwinDelta(Manifest.model_validate(manifest), state)

    def save_delta(self, delta: TwinDelta) -> bytes:
        """Return the file of a delta."""
        return delta.encode()

    def certify(
        self,
        base: TwinBase,
        delta: TwinDelta,
        data: bytes,
        splits: Mapping[str, Sequence[dict[str, Any]]],
        *,
        check: Callable[[], None],
    ) -> "TwinCertificate":
        """Pass, unless the job's metadata says otherwise."""
        check()
        passed = self._is_sound and data == delta.encode()
        return TwinCertificate(passed, None if passed else "row 3 differs")

    def tidy(self) -> None:
        """Nothing to give back."""


def _manifest_of(
    base: TwinBase,
    spec: JobSpec,
    splits: Mapping[str, Sequence[dict[str, Any]]],
    parent: TwinDelta | None,
) -> Manifest:
    return Manifest(
        base_model=spec.base_model,
        base_fingerprint=base.fingerprint,
        architecture="encoder",
        precision="fp32",
        task="text-classification",
        methods=spec.method,
        labels=tuple(sorted({row["label"] for row in splits["train"]})),
        head=HeadSpec(pooling="mean", normalize=True, scale=1.0),
        template_digest="sha256:" + "0" * 64,
        max_length=128,
        parent_digest=None if parent is None else parent.digest,
    )


class _Run:
    """One run, resumed from its newest checkpoint."""

    def __init__(
        self,
        spec: JobSpec,
        manifest: Manifest,
        control: Callable[[], str | None],
        emit: Callable[[TrainingEvent], None],
        checkpoints: Checkpoints,
    ) -> None:
        self._asked = spec.metadata
        self._manifest = manifest
        self._total = spec.training.max_steps or 10
        self._control = control
        self._emit = emit
        self._checkpoints = checkpoints
        self._every = int(self._asked.get("checkpoint_every", "1"))
        self._hold = {int(step) for step in self._asked.get("hold", "").split(",") if step}
        self.step = 0
        self.state = ""

    @property
    def delta(self) -> TwinDelta:
        """What has been learned so far."""
        return TwinDelta(self._manifest, self.state)

    def train(
        self, splits: Mapping[str, Sequence[dict[str, Any]]]
    ) -> Literal["cancelled", "paused", "drained"] | None:
        """Count; None when all steps are done."""
        self.state = hashlib.sha256(json.dumps(splits["train"]).encode()).hexdigest()
        newest = self._checkpoints.latest()
        if newest is not None:
            step, state, delta = newest
            self.step, self.state = step, state.decode()
            assert delta == self.delta, "both parts of a checkpoint are of one step"
        self._emit(TwinEvent("phase", {"phase": "training"}))
        while self.step < self._total:
            outcome = self._obey()
            if outcome is not None:
                return outcome
            self._take_step()
            while self.step in self._hold and not self._gate_is_open():
                outcome = self._obey()
                if outcome is not None:
                    return outcome
        self._emit(TwinEvent("phase", {"phase": "evaluating"}))
        return None

    def _obey(self) -> Literal["cancelled", "paused", "drained"] | None:
        wish = self._control()
        if wish in {"pause", "drain"}:
            self._save()
        return _OUTCOMES[wish] if wish else None

    def _take_step(self) -> None:
        number = self.step + 1
        self.misbehave(number)
        self.state = hashlib.sha256(f"{self.state} {number}".encode()).hexdigest()
        self.step = number
        if "trace" in self._asked:
            with Path(self._asked["trace"]).open("a") as trace:
                trace.write(f"{os.getpid()} {number}\n")
        if number % self._every == 0:
            self._save()
        progress = {"step": number, "total_steps": self._total, "epoch": 0.0, "tokens": number * 9}
        self._emit(TwinEvent("progress", progress))
        self._emit(TwinEvent("metric", {"name": "train/loss", "step": number, "value": 1 / number}))

    def misbehave(self, number: int) -> None:
        """Do before a step what the job's metadata asks for."""
        if self._asked.get("crash_at") == str(number) and not self._is_mended():
            os.kill(os.getpid(), signal.SIGKILL)
        if self._asked.get("hang_at") == str(number):
            threading.Event().wait()
        step, _, kind = self._asked.get("raise_at", ":").partition(":")
        if step == str(number):
            if kind == "memory":
                raise MemoryError
            if kind == "engine":
                raise TrainingError("the loss is not a number", code="loss_not_finite")
            raise RuntimeError("a fault in /secret/path of ours")

    def _is_mended(self) -> bool:
        return "gates" in self._asked and (Path(self._asked["gates"]) / "mended").exists()

    def _gate_is_open(self) -> bool:
        if (Path(self._asked["gates"]) / str(self.step)).exists():
            return True
        threading.Event().wait(0.01)
        return False

    def _save(self) -> None:
        self._checkpoints.save(self.step, self.state.encode(), self.delta)


class _NoCheckpoints:
    def save(self, step: int, state: bytes, delta: TrainedDelta) -> None:
        del step, state, delta

    def latest(self) -> None:
        return None


def train_undisturbed(settings: Settings, spec: JobSpec, splits: Mapping[str, Any]) -> str:
    """Digest of what a job learns when nothing happens to it, computed in this process."""
    engine = TwinEngine(settings)
    base = engine.load_base(spec.base_model, spec.training.precision)
    result = engine.train(
        base,
        spec.model_copy(update={"metadata": {}}),
        splits,
        control=lambda: None,
        emit=lambda _: None,
        checkpoints=_NoCheckpoints(),
        checkpoint_seconds=1.0,
    )
    assert result.delta is not None
    return result.delta.digest
