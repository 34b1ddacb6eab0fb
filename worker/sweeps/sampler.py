"""The one door to Optuna: where to look next, as a function of what was found and a seed.

Nothing of it is stored. Each question makes a study in memory, tells it what the trials' jobs gave,
asks once and forgets it; so whoever asks after a kill is answered alike.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import create_trial

from peft_engine.configs import SearchField

Params = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Told:
    """A point whose value is known.

    Attributes:
        params: Value by path.
        value: Of the metric.
    """

    params: Params
    value: float


def ask(
    search: Mapping[str, SearchField],
    told: Sequence[Told],
    *,
    strategy: str,
    seed: int,
    lower_is_better: bool,
) -> dict[str, Any]:
    """Choose a point.

    Args:
        search: What each field may be.
        told: The points that are known, in the order of their numbers.
        strategy: ``random``, which looks at none of them, or ``tpe``.
        seed: Of this very question, 0 to 2³² - 1.
        lower_is_better: Of the metric.

    Returns:
        Value by path.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {path: _distribution(field) for path, field in sorted(search.items())}
    study = optuna.create_study(
        sampler=_sampler(strategy, seed),
        direction="minimize" if lower_is_better else "maximize",
    )
    for own in told:
        params = {path: _encode(search[path], value) for path, value in own.params.items()}
        study.add_trial(create_trial(params=params, distributions=space, value=own.value))
    found = study.ask(fixed_distributions=space).params
    return {path: _decode(search[path], found[path]) for path in space}


def _sampler(strategy: str, seed: int) -> BaseSampler:
    return TPESampler(seed=seed) if strategy == "tpe" else RandomSampler(seed=seed)


def _distribution(field: SearchField) -> BaseDistribution:
    if field.values is not None:
        # by place: Optuna takes no objects
        return CategoricalDistribution(list(range(len(field.values))))
    if isinstance(field.min, int) and isinstance(field.max, int):
        return IntDistribution(field.min, field.max, log=field.log)
    return FloatDistribution(float(field.min or 0), float(field.max or 0), log=field.log)


def _encode(field: SearchField, value: Any) -> Any:
    if field.values is None:
        return value
    # 1 and True are equal in Python and not in JSON
    return [json.dumps(own, sort_keys=True) for own in field.values].index(
        json.dumps(value, sort_keys=True)
    )


def _decode(field: SearchField, value: Any) -> Any:
    return value if field.values is None else field.values[value]
