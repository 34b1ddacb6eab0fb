"""Whether a sweep can be made of jobs: every problem at once, before anything is made."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from app.schemas.shared import problems_of
from core.errors import BadInput
from peft_engine.configs import JobSpec, SearchField, SweepSpec
from peft_engine.configs.search import DECIDING, build_job, grid_point, own_path, why_fixed
from peft_engine.configs.sweep import MAX_JOBS

_SHOWN = 100
"""Problems listed; all are counted."""

_SHOWN_CHARS = 60

Problem = dict[str, Any]


def check(sweep: SweepSpec) -> None:
    """Refuse a sweep whose fields or values are not those of a job.

    Args:
        sweep: The sweep. ``BadInput`` goes through when it has problems; ``details`` lists them
            with the field as ``param``.
    """
    _refuse(list(_problems(sweep)))


def check_fields(sweep: SweepSpec, *, task: str | None) -> None:
    """Refuse a sweep over fields that have no meaning for a task.

    Args:
        sweep: The sweep, checked by itself. ``BadInput`` goes through as from ``check``.
        task: Of its data set.
    """
    fixed = ((path, why_fixed(path, task=task)) for path in sorted(sweep.search))
    _refuse([_fixed(path, why) for path, why in fixed if why is not None])


def _refuse(problems: Sequence[Problem]) -> None:
    """Tell every problem, if there is one.

    Raises:
        BadInput: There is.
    """
    if not problems:
        return
    first = problems[0]
    more = f" ({len(problems)} problems in all)" if len(problems) > 1 else ""
    raise BadInput(
        f"{first['param']}: {first['message']}{more}",
        param=first["param"],
        details=problems[:_SHOWN],
    )


def sample_points(sweep: SweepSpec) -> Iterator[dict[str, Any]]:
    """Give points by which a sweep can be checked beforehand.

    Args:
        sweep: The sweep.

    Yields:
        Of a grid every point. Of draws one for every sample of a field, beside the first of the
        others: what a draw combines is known when it is drawn.
    """
    if sweep.strategy == "grid":
        for number in range(sweep.trials):
            yield grid_point(sweep, number)
        return
    first = {path: field.samples[0] for path, field in sweep.search.items()}
    yield first
    for path, field in sorted(sweep.search.items()):
        for value in field.samples[1:]:
            yield first | {path: value}


def _problems(sweep: SweepSpec) -> Iterator[Problem]:
    job = list(_problems_of_job(sweep))
    yield from job
    fields = list(_problems_of_fields(sweep))
    yield from fields
    yield from _problems_of_size(sweep)
    if not job and not fields:
        yield from _problems_of_points(sweep)


def _problems_of_job(sweep: SweepSpec) -> Iterator[Problem]:
    try:
        job = JobSpec.model_validate(sweep.job)
    except ValidationError as error:
        for problem in problems_of(error.errors()):
            yield {**problem, "param": f"job.{problem['param']}".rstrip(".")}
        return
    if not job.auto_start:
        yield _problem("job.auto_start", "a sweep starts its jobs; leave it out")
    stopping = job.training.early_stopping
    if sweep.metric == "auto":
        return
    if stopping is None:
        yield _problem(
            "metric", "without training.early_stopping the task's own metric decides; leave it out"
        )
    elif stopping.metric not in ("auto", sweep.metric):
        yield _problem("metric", f"job.{DECIDING} is {stopping.metric!r}: two things are asked for")


def _problems_of_fields(sweep: SweepSpec) -> Iterator[Problem]:
    for path, field in sorted(sweep.search.items()):
        where = f"search.{path}"
        why = why_fixed(path, task=None)
        if why is not None:
            yield _fixed(path, why)
            continue
        own = own_path(path)
        for other in sweep.search:
            outer = own_path(other)
            if other != path and own[: len(outer)] == outer:
                does = "is" if own == outer else "holds"
                yield _problem(where, f"{other} is searched as well and {does} this field")
        if sweep.strategy == "grid" and field.values is None:
            message = "a grid takes values, not a range; list them, or take random or tpe"
            yield _problem(where, message)
        yield from _problems_of_values(sweep, path, field)


def _problems_of_values(sweep: SweepSpec, path: str, field: SearchField) -> Iterator[Problem]:
    """Each value by itself, on the job as it is; what is wrong with that job is told elsewhere."""
    known = _found_wrong(sweep, {})
    shown_by_job: dict[str, str] = {}
    for value in field.samples:
        shown = json.dumps(value)[:_SHOWN_CHARS]
        built = _build(sweep, {path: value})
        if isinstance(built, JobSpec):
            job = built.model_dump_json()  # Python takes true, 1 and 1.0 for one
            if job in shown_by_job:
                earlier = shown_by_job[job]
                does = "stands twice" if shown == earlier else f"means what {earlier} means"
                yield _problem(f"search.{path}", f"{shown} {does}; leave one out")
            shown_by_job.setdefault(job, shown)
            continue
        for message in built:
            if message not in known:
                yield _problem(f"search.{path}", f"{shown}: {message}")


def _problems_of_size(sweep: SweepSpec) -> Iterator[Problem]:
    size = sweep.combinations
    has_ranges = any(field.values is None for field in sweep.search.values())
    if sweep.strategy != "grid" or size is None or has_ranges:
        return
    most = MAX_JOBS if sweep.max_jobs is None else sweep.max_jobs
    if size > most:
        limit = "that a sweep has" if sweep.max_jobs is None else "of max_jobs"
        message = f"the grid has {size} combinations, more than the {most} {limit}; list fewer"
        yield _problem("search", f"{message} values, or take random or tpe")


def _problems_of_points(sweep: SweepSpec) -> Iterator[Problem]:
    """What fits by itself and not together; of a grid that is too large only the beginning."""
    for point in itertools.islice(sample_points(sweep), 16 * MAX_JOBS):
        for message in _found_wrong(sweep, point):
            values = ", ".join(f"{path} = {json.dumps(own)}" for path, own in point.items())
            yield _problem("search", f"{values}: {message}")


def _found_wrong(sweep: SweepSpec, point: Mapping[str, Any]) -> list[str]:
    built = _build(sweep, point)
    return [] if isinstance(built, JobSpec) else built


def _build(sweep: SweepSpec, point: Mapping[str, Any]) -> JobSpec | list[str]:
    """The job of a point, or all that is wrong with it."""
    try:
        return build_job(sweep, point)
    except ValidationError as error:
        found = problems_of(error.errors())
        return [f"{problem['param']}: {problem['message']}" for problem in found]
    except ValueError as error:
        return [str(error)]


def _fixed(path: str, why: str) -> Problem:
    return _problem(f"search.{path}", f"this field is no part of a search: {why}")


def _problem(param: str, message: str) -> Problem:
    return {"param": param, "code": "bad_input", "message": message}
