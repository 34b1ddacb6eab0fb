"""The real engine with gates: training waits after chosen steps, so that a test can strike there.

Steered by the job's metadata like the twin (``trace``, ``gates``, ``hold``); everything else is the
product's own: engine, checkpoints, supervisor.
"""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from celery import Celery

from core.settings import load_settings
from peft_engine.compression.watch import UNWATCHED, Watch
from peft_engine.configs import JobSpec
from worker.celery_app import create_app
from worker.engine import Entry, TrainingEvent
from worker.trainer_engine import PeftEngine, WarmBase
from worker.trainer_slot import TRAINER_COMMAND


class GatedEngine(PeftEngine):
    """Trains with ``peft_engine`` and looks at the gates whenever training asks for wishes.

    What makes a derived base waits as long as there is a file ``hold-derivation``.
    """

    def load_base(self, name: str, precision: str, watch: Watch = UNWATCHED) -> WarmBase:
        return super().load_base(name, precision, self._held(watch))

    def settle_base(
        self,
        base: WarmBase,
        spec: JobSpec,
        splits: Mapping[str, Sequence[dict[str, Any]]],
        *,
        watch: Watch,
    ) -> JobSpec:
        return super().settle_base(base, spec, splits, watch=self._held(watch))

    def _held(self, watch: Watch) -> Watch:
        folder, pause = self._settings.data_dir, threading.Event()

        def check() -> None:
            watch.check()
            while (folder / "hold-derivation").exists():
                (folder / "derivation-is-held").touch()
                pause.wait(0.01)
                watch.check()

        return Watch(check, watch.progress)

    def train_together(
        self,
        base: WarmBase,
        *,
        arrivals: Callable[[], Sequence[Entry]],
        on_room: Callable[[int], None],
        checkpoint_seconds: float,
    ) -> None:
        super().train_together(
            base,
            arrivals=lambda: [_gated(entry) for entry in arrivals()],
            on_room=on_room,
            checkpoint_seconds=checkpoint_seconds,
        )


def _gated(entry: Entry) -> Entry:
    gates = _Gates(entry.spec.metadata, entry.control, entry.emit)
    return replace(entry, control=gates.control, emit=gates.emit)


class _Gates:
    def __init__(
        self,
        asked: Mapping[str, str],
        control: Callable[[], str | None],
        emit: Callable[[TrainingEvent], None],
    ) -> None:
        self._asked = asked
        self._control = control
        self._emit = emit
        self._hold = {int(step) for step in asked.get("hold", "").split(",") if step}
        self._step = 0

    def emit(self, event: TrainingEvent) -> None:
        if event.kind == "progress" and event.data["step"] > self._step:
            self._step = int(event.data["step"])
            if "trace" in self._asked:
                with Path(self._asked["trace"]).open("a") as trace:
                    trace.write(f"{os.getpid()} {self._step}\n")
        self._emit(event)

    def control(self) -> str | None:
        wish = self._control()
        pause = threading.Event()
        while wish is None and self._step in self._hold and not self._is_open():
            pause.wait(0.01)
            wish = self._control()
        return wish

    def _is_open(self) -> bool:
        return (Path(self._asked["gates"]) / str(self._step)).exists()


@cache
def _app() -> Celery:
    command = (*TRAINER_COMMAND, "--engine", "tests.service.worker.gated:GatedEngine")
    return create_app(load_settings(), trainer_command=command)


def __getattr__(name: str) -> Celery:
    if name == "app":
        return _app()
    raise AttributeError(name)
