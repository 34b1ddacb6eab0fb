"""Which points a sweep tries next.

A point is a function of the sweep, its number, the trials before it and those that have ended by
then; no clock and no memory of a process has a say.
"""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from core.db.trials import Trial
from peft_engine.configs import SweepSpec
from peft_engine.configs.search import grid_point
from peft_engine.configs.training import LOWER_IS_BETTER

_TRIES = 16
"""Draws of a point that was not tried before; a draw takes milliseconds, a trial minutes."""


def next_point(spec: SweepSpec, trials: Sequence[Trial], number: int) -> dict[str, Any]:
    """Choose the values of one more trial.

    Args:
        spec: The sweep.
        trials: Those before it, whether they have ended or not.
        number: Its number.

    Returns:
        Value by path. No point is tried twice while others are left.
    """
    if spec.strategy == "grid":
        return grid_point(spec, number)
    # Loaded here: it takes half a second and 40 MB, which workers without a search do without.
    from worker.sweeps import sampler

    told = [sampler.Told(trial.params, trial.value) for trial in trials if trial.value is not None]
    lower = any(trial.metric in LOWER_IS_BETTER for trial in trials)
    known = {_shown(trial.params) for trial in trials}
    point: dict[str, Any] = {}
    for attempt in range(_TRIES):
        point = sampler.ask(
            spec.search,
            told,
            strategy=spec.strategy,
            seed=_seed(spec.seed, number, attempt),
            lower_is_better=lower,
        )
        if _shown(point) not in known:
            return point
    return _untried(spec, known) or point


def _seed(seed: int, number: int, attempt: int) -> int:
    digest = hashlib.sha256(f"{seed}/{number}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _untried(spec: SweepSpec, known: set[str]) -> dict[str, Any] | None:
    """The first point that is new; None where they cannot be counted, or all are known.

    A search has at most 256 trials, so that one of the first 257 points is new.
    """
    size = spec.combinations
    if size is None:
        return None
    points = (grid_point(spec, number) for number in itertools.islice(range(size), len(known) + 1))
    return next((point for point in points if _shown(point) not in known), None)


def _shown(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)
