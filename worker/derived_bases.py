"""Derived bases of a trainer: what pruning takes away is chosen once, and lies beside the deltas.

Other hosts must prune as this one did, and rows are not at hand where a base is only served. So the
first choice that reaches storage is everybody's.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.errors import Conflict, NotFound
from core.settings import Settings
from core.storage import derived_key, open_store
from peft_engine.bases.base import Base, BaseInfo, describe_base, load_described
from peft_engine.compression.derive import make_plan, name_rows, plan_name, plan_path
from peft_engine.compression.pruning import Calibration, PruningPlan
from peft_engine.compression.watch import Watch
from peft_engine.configs import BaseConfig, JobSpec, PruningConfig
from peft_engine.errors import BaseModelError, ConfigError
from peft_engine.tasks.table import find_task
from peft_engine.training.movement import choose_by_movement, movement_rows

_log = logging.getLogger(__name__)

_MOST_TOKENS = 512
"""Of a calibration row; longer ones are cut, as they are in training by default."""


class DerivedBases:
    """Finds, makes and keeps what pruning takes away.

    Args:
        settings: Base models, folder of models and storage.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def describe(self, name: str) -> BaseInfo:
        """A base model as published.

        Args:
            name: Its name in the settings.

        Returns:
            Its description.

        Raises:
            BaseModelError: There is none of this name here.
        """
        settings = self._settings
        reference = settings.base_models.get(name)
        if reference is None:
            known = ", ".join(sorted(settings.base_models))
            raise BaseModelError(
                f"this worker has no base model {name!r}; it has {known}",
                code="base_not_found",
                param="base_model",
            )
        return describe_base(
            reference, name=name, models_dir=settings.models_dir, allow_hub=settings.allow_hub
        )

    def plan_of(self, parent: BaseInfo, derivation: BaseConfig) -> PruningPlan | None:
        """What a pruning that looked at rows takes away.

        Args:
            parent: The base as published.
            derivation: What is done to it.

        Returns:
            The plan; None where none is needed, or it is nowhere.
        """
        pruning = derivation.pruning
        if pruning is None or pruning.calibration is None:
            return None
        path = self._fetch(plan_name(parent, pruning))
        return None if path is None else PruningPlan.from_bytes(path.read_bytes())

    def settle(
        self,
        base: Base,
        spec: JobSpec,
        splits: Mapping[str, Sequence[dict[str, Any]]],
        *,
        watch: Watch,
    ) -> JobSpec:
        """Decide which rows decide, and let them.

        Args:
            base: The base as published, in use: it is looked at only.
            spec: A job whose pruning looks at rows of its own training split.
            splits: Canonical records.
            watch: Told of each part, and asked between forwards.

        Returns:
            The job with the rows' digest in its ``base``.

        Raises:
            ConfigError: The job prunes nothing, or names no task.
        """
        pruning, records = spec.base.pruning, splits.get("train", ())
        if pruning is None or spec.task is None:
            raise ConfigError("this job prunes nothing", code="bad_input", param="base.pruning")
        task = find_task(spec.task, records)
        examples = task.encode(
            base,
            records,
            labels=task.find_labels(records),
            max_length=min(base.max_length, _MOST_TOKENS),
        )
        learned = pruning.method == "movement"
        if learned:
            calibration = movement_rows(examples, spec)
        else:
            calibration = Calibration.of(examples, count=pruning.calibration_rows)
        derivation = name_rows(spec.base, calibration)
        if derivation.pruning is not None:
            name = plan_name(base.info, derivation.pruning)
            if self._fetch(name) is None:
                _log.info("pruning %s as %s", base.name, derivation.name)
                if learned:
                    plan = self._learn_plan(base.info, spec, pruning, splits, watch)
                else:
                    plan = make_plan(base.info, pruning, calibration, watch=watch)
                with suppress(Conflict):  # another host was first; its products round otherwise
                    open_store(self._settings).put_new(derived_key(name), plan.to_bytes())
        return spec.model_copy(update={"base": derivation})

    def _learn_plan(
        self,
        parent: BaseInfo,
        spec: JobSpec,
        pruning: PruningConfig,
        splits: Mapping[str, Sequence[dict[str, Any]]],
        watch: Watch,
    ) -> PruningPlan:
        """On a base of its own: the hooks of a training stay in the model."""
        base = load_described(parent, device=self._settings.device, precision="fp32")
        return choose_by_movement(base, spec, splits, pruning, watch=watch)

    def _fetch(self, name: str) -> Path | None:
        """The file of a plan on this machine, from storage if need be."""
        path = plan_path(self._settings.models_dir, name)
        if not path.exists():
            try:
                open_store(self._settings).fetch_to(derived_key(name), path)
            except NotFound:
                return None
        return path
