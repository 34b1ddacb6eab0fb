"""One run of the comparison: a job of the engine as the service would run it."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.quality.grid import BASES, METHODS, REVISIONS, SETS
from benchmarks.quality.journal import digest
from benchmarks.quality.rows import bound_rows, read_splits
from benchmarks.record import describe_run
from peft_engine.bases.base import Base, load_base
from peft_engine.configs import JobSpec
from peft_engine.router import Router
from peft_engine.tasks.table import TASKS
from peft_engine.training import FeatureStore, NoCheckpoints, TrainingEvent, train
from peft_engine.training.recipes import FEW_ROW_RECIPES, Recipes, recipes_for
from peft_engine.training.resolve import combine_recipes

Splits = Mapping[str, Sequence[dict[str, Any]]]
"""Canonical records by split."""

DECIDING_DEFAULTS = (
    "early_stopping",
    "keep",
    "label_smoothing",
    "max_grad_norm",
    "optimizer",
    "schedule",
    "warmup_ratio",
)
"""Settings whose defaults decide the outcome. A new setting with a neutral default is none of them,
so that it does not void what was measured."""


@dataclass(frozen=True)
class QualityJob:
    """A set, a method and a seed; ``training`` and ``options`` are empty for default settings.

    Attributes:
        set: Name of a set.
        method: Name of a method.
        seed: The job's seed.
        training: Settings other than the defaults, for tuning.
        options: Options of the (first) method other than the defaults, for tuning.
        train_rows: Evenly spaced training rows; None: as the set says.
        with_test: Whether the test split is looked at. Tuning never does.
        precision: Arithmetic of the base.
    """

    set: str
    method: str
    seed: int
    training: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    train_rows: int | None = None
    with_test: bool = True
    precision: str = "auto"

    @property
    def spec(self) -> JobSpec:
        """The job as the service would take it."""
        own = SETS[self.set]
        asked = METHODS[self.method]
        names = [asked] if isinstance(asked, str) else asked
        first, *others = [{"type": name} for name in names]
        return JobSpec.model_validate(
            {
                "dataset_id": self.set,
                "base_model": own.base,
                "task": own.task,
                "method": [first | dict(self.options), *others],
                "training": {
                    "seed": self.seed,
                    "eval_generate_rows": own.generate_rows if self.with_test else 0,
                    **self.training,
                },
            }
        )

    @property
    def recipe(self) -> str:
        """Digest of everything but the seed that decides the outcome: the recipe among it."""
        own, spec = SETS[self.set], self.spec
        asked = [method.model_dump(mode="json", exclude_defaults=True) for method in spec.method]
        training = spec.training.model_dump(mode="json", exclude_defaults=True, exclude={"seed"})
        rates = [self._recipes[method.type, own.task].learning_rate for method in spec.method]
        return digest(
            {
                "methods": [{"type": m.type, **a} for m, a in zip(spec.method, asked, strict=True)],
                "training": training | {n: getattr(spec.training, n) for n in DECIDING_DEFAULTS},
                "recipe": combine_recipes(spec, TASKS[own.task], recipes=self._recipes),
                **({"rates": rates} if len(rates) > 1 else {}),  # of one it is in the recipe
                "rows": [self.rows_of_training, own.test_rows, self.with_test],
                "precision": self.precision,
                "revisions": [
                    own.revision,
                    *(REVISIONS.get((m.type, own.base), 1) for m in spec.method),
                ],
            }
        )

    @property
    def _recipes(self) -> Recipes:
        """Those that the job's training rows lead to."""
        if self.rows_of_training is None and SETS[self.set].few_rows:
            return FEW_ROW_RECIPES
        return recipes_for(self.rows_of_training)

    @property
    def rows_of_training(self) -> int | None:
        """Training rows; None: all."""
        return SETS[self.set].train_rows if self.train_rows is None else self.train_rows

    @property
    def key(self) -> str:
        """What the journal knows the run by."""
        return f"{self.set}|{self.method}|{self.seed}|{self.recipe}"


class Workbench:
    """Bases and records that several runs of one process share.

    Args:
        data: Folder with a folder for each set.
        models_dir: Folder of the base models.
    """

    def __init__(self, data: Path, models_dir: Path) -> None:
        self._data, self._models_dir = data, models_dir
        self._bases: dict[tuple[str, str], tuple[Base, Router]] = {}
        self._splits: dict[str, dict[str, list[dict[str, Any]]]] = {}
        self._features = FeatureStore()

    def run(self, job: QualityJob, splits: Splits | None = None) -> dict[str, Any]:
        """Run a job from its start to its end.

        Args:
            job: The job.
            splits: Records by split; None: the set's own, bounded as the job says.

        Returns:
            Its line for the journal.
        """
        base, router = self._base(SETS[job.set].base, job.precision)
        heads: dict[str, Any] = {}
        course: list[dict[str, Any]] = []

        def listen(event: TrainingEvent) -> None:
            if event.kind == "resolved":
                heads.update(event.data)
            if event.kind == "metric" and event.data["name"].startswith("validation/"):
                course.append(dict(event.data))

        started, processor = time.monotonic(), time.process_time()
        result = train(
            base,
            job.spec,
            self._rows(job) if splits is None else splits,
            control=lambda: None,
            emit=listen,
            checkpoints=NoCheckpoints(),
            features=self._features,
            router=router,
        )
        own = SETS[job.set]
        return {
            "key": job.key,
            "set": job.set,
            "method": job.method,
            "seed": job.seed,
            "recipe": job.recipe,
            "tuned": {**job.training, **job.options},
            "base": base.name,
            "precision": base.precision,
            "metric": own.metric,
            "train_rows": job.rows_of_training,
            "validation": result.metrics.get("validation"),
            "course": _course(course, own.metric if own.metric != "bleu" else "loss"),
            "test": result.metrics.get("test"),
            "resolved": dict(result.resolved),
            "delta_parameters": result.trainable_parameters - heads["head_parameters"],
            "head_parameters": heads["head_parameters"],
            "base_parameters": result.base_parameters,
            "seconds": round(time.monotonic() - started, 1),
            "processor_seconds": round(time.process_time() - processor, 1),
            "load_average": round(os.getloadavg()[0], 2),
            **describe_run(),
        }

    def _base(self, name: str, precision: str) -> tuple[Base, Router]:
        if (name, precision) not in self._bases:
            base = load_base(
                BASES[name],
                name=name,
                models_dir=self._models_dir,
                precision=precision,  # type: ignore[arg-type]
            )
            self._bases[name, precision] = base, Router(base.trunk)
        return self._bases[name, precision]

    def _rows(self, job: QualityJob) -> Splits:
        own = SETS[job.set]
        if job.set not in self._splits:
            self._splits[job.set] = read_splits(self._data / job.set, task=own.task)
        splits = self._splits[job.set]
        if not job.with_test:
            splits = {**splits, "test": []}
        bounded: Splits = bound_rows(splits, train=job.rows_of_training, test=own.test_rows)
        return bounded


def _course(told: Sequence[Mapping[str, Any]], metric: str) -> list[list[float]]:
    """Step and value of one metric of validation, in order of the steps."""
    own = [t for t in told if t["name"] == f"validation/{metric}"]
    return sorted([[t["step"], round(t["value"], 4)] for t in own])
