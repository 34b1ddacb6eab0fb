"""From the values of a trial to its job. Pure: what a number means never changes."""

import copy
from collections.abc import Mapping
from typing import Any

from peft_engine.configs.job import JobSpec
from peft_engine.configs.sweep import SweepSpec

DECIDING = "training.early_stopping.metric"

_SAME_ROWS = "trials are compared on the same rows"
FIXED: Mapping[str, str] = {
    "dataset_id": f"{_SAME_ROWS}: make a sweep for each data set",
    "task": f"{_SAME_ROWS} by the same metric",
    "allow_leakage": "it is for the whole sweep: say it in the job",
    "parent_adapter_id": "make a sweep for each parent",
    "adapter_name": "the sweep names the adapters",
    "metadata": "it changes nothing that is trained",
    "auto_start": "the sweep starts its jobs",
    "evaluate_test": "only the best trial is tested",
    DECIDING: "trials are compared by one metric: name it as metric of the sweep",
    "training.validation_generate_rows": f"{_SAME_ROWS}: say it in the job",
}
"""Fields that are no part of a search, and why; nor is what holds one of them."""

_COUNTS_TOKENS = "text-generation"
_TOKENS_DIFFER = "its metrics count tokens, which another base or length counts otherwise"


def why_fixed(path: str, *, task: str | None) -> str | None:
    """Say why a field is no part of a search.

    Args:
        path: Of the field.
        task: Of the data set, if it is known.

    Returns:
        The reason; None for a field that may be.
    """
    fixed = dict(FIXED)
    if task == _COUNTS_TOKENS:
        fixed |= dict.fromkeys(("base_model", "training.max_length"), _TOKENS_DIFFER)
    for name, why in fixed.items():
        if path == name or path.startswith(f"{name}."):
            return why
        if name.startswith(f"{path}."):
            return f"{name} stands in it: {why}"
    return None


def grid_point(sweep: SweepSpec, number: int) -> dict[str, Any]:
    """Give one point of a search that has only so many.

    Paths count in the order of their letters, since a database forgets the order of a JSON object.

    Args:
        sweep: None of its fields has a range of fractions.
        number: From 0 to ``combinations - 1``; the last path changes first.

    Returns:
        Value by path.
    """
    chosen: dict[str, Any] = {}
    for path in sorted(sweep.search, reverse=True):
        values = sweep.search[path].choices or ()
        number, place = divmod(number, len(values))
        chosen[path] = values[place]
    return dict(sorted(chosen.items()))


def own_path(path: str) -> tuple[str, ...]:
    """Give the one way in which a field is named, of several.

    Args:
        path: As it was sent: ``method.r`` and ``method.0.r`` lead to the same field.

    Returns:
        Its parts.
    """
    parts = [str(int(part)) if part.isdecimal() else part for part in path.split(".")]
    if parts[0] == "method" and len(parts) > 1 and not parts[1].isdecimal():
        parts.insert(1, "0")
    return tuple(parts)


def build_job(sweep: SweepSpec, params: Mapping[str, Any]) -> JobSpec:
    """Make the job of a trial.

    Args:
        sweep: The sweep.
        params: Value by path.

    Returns:
        The job with these values; names and the test are as the sweep's job has them. Pydantic's
        ``ValidationError`` goes through where the values go together in no job, and ``put``'s
        ``ValueError`` for a path that leads nowhere.
    """
    job = copy.deepcopy(sweep.job)
    for path, value in sorted(params.items()):
        put(job, path, copy.deepcopy(value))
    if sweep.metric != "auto":
        put(job, DECIDING, sweep.metric)
    return JobSpec.model_validate(job)


def put(job: dict[str, Any], path: str, value: Any) -> None:
    """Give a field of a job another value.

    Args:
        job: As it would be sent; changed in place.
        path: Names with dots; a number for an entry of a list.
        value: Anything.

    Raises:
        ValueError: The path leads through something that has no fields or no such entry.
    """
    parts = path.split(".")
    if parts[0] == "method" and len(parts) > 1:
        parts = ["method", *_method_parts(job, parts[1:])]
    place: Any = job
    for done, part in enumerate(parts[:-1], 1):
        if _entry(place, part, path) is None:
            _set(place, part, {}, path)
        place = _entry(place, part, path)
        if not isinstance(place, dict | list):
            message = f"{'.'.join(parts[:done])} is {place!r}, which has no fields"
            raise ValueError(message)  # noqa: TRY004  what a caller of ours sent, not a call of ours
    _set(place, parts[-1], value, path)


def _method_parts(job: dict[str, Any], parts: list[str]) -> list[str]:
    """The way into the methods, written out as a list of objects.

    Raises:
        ValueError: There are several and none is named.
    """
    methods = job.get("method", "lora")
    methods = methods if isinstance(methods, list) else [methods]
    job["method"] = [{"type": own} if isinstance(own, str) else own for own in methods]
    if parts[0].isdecimal():
        return parts
    if len(methods) > 1:
        raise ValueError(f"the job has {len(methods)} methods: write method.0.{parts[0]}, or 1")
    return ["0", *parts]


def _entry(place: Any, part: str, path: str) -> Any:
    if isinstance(place, list):
        return place[_place_in(place, part, path)]
    return place.get(part)


def _set(place: Any, part: str, value: Any, path: str) -> None:
    if isinstance(place, list):
        place[_place_in(place, part, path)] = value
    else:
        place[part] = value


def _place_in(entries: list[Any], part: str, path: str) -> int:
    if not part.isdecimal() or int(part) >= len(entries):
        raise ValueError(f"{path}: {part} is no entry of a list of {len(entries)}, counted from 0")
    return int(part)
