"""Runs side by side: one process each, jobs in their order, every finished one kept at once.

For a machine with many cores and an accelerator that one small job does not fill. On two cores it
gains nothing.
"""

import multiprocessing
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from benchmarks.quality.journal import Journal
from peft_engine.runtime import pin_threads

Job = TypeVar("Job")


class NamedJob(Protocol):
    """A job that a journal knows by its key."""

    @property
    def set(self) -> str:
        """Its data set."""

    @property
    def method(self) -> str:
        """Its method."""

    @property
    def seed(self) -> int:
        """Its seed."""

    @property
    def key(self) -> str:
        """What the journal knows it by."""


class Bench(Protocol):
    """Runs jobs, and keeps what they share."""

    def run(self, job: Any) -> dict[str, Any]:
        """A finished job's line, with ``course`` and ``seconds``."""


def run_missing(
    jobs: Sequence[NamedJob],
    make_bench: Callable[[], Bench],
    path: Path,
    *,
    workers: int,
    threads: int,
) -> int:
    """Run the jobs that a journal does not have, and write a line for each.

    Args:
        jobs: In their order; picklable with several workers.
        make_bench: Makes what runs them, once in each process; picklable as well.
        path: The journal.
        workers: Processes; 1: this one.
        threads: Threads of each.

    Returns:
        How many failed, as ``run_jobs``.
    """
    finished = {line["key"] for line in Journal(path)}
    missing = [job for job in jobs if job.key not in finished]
    print(f"{len(missing)} of {len(jobs)} runs to make", flush=True)
    make_runner = partial(_Runner, make_bench, path)
    return run_jobs(missing, make_runner, workers=workers, threads=threads)


class _Runner:
    """Runs jobs in one process and writes a line for each."""

    def __init__(self, make_bench: Callable[[], Bench], path: Path) -> None:
        self._bench, self._journal = make_bench(), Journal(path)

    def __call__(self, job: NamedJob) -> None:
        line = self._bench.run(job)
        self._journal.add(line)
        # The test score is kept and not shown: whoever watches a run may be choosing settings.
        print(
            f"{job.set} {job.method} seed {job.seed} {line.get('tuned') or ''} "
            f"validation {line['course']} {line['seconds']} s",
            flush=True,
        )


def run_jobs(
    jobs: Sequence[Job],
    make_runner: Callable[[], Callable[[Job], None]],
    *,
    workers: int,
    threads: int,
) -> int:
    """Run jobs, the first ones first.

    Args:
        jobs: What to run; with several workers they must be picklable.
        make_runner: Makes what runs a job, once in each process; picklable as well.
        workers: Processes; 1: this one.
        threads: Threads of each.

    Returns:
        How many failed. Of each the reason is printed, and the others go on; in this process the
        first one raises.
    """
    if workers == 1:
        _start(make_runner, threads)
        for job in jobs:
            _run(job)
        return 0
    failed = 0
    with ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),  # CUDA does not survive a fork
        initializer=_start,
        initargs=(make_runner, threads),
    ) as pool:
        asked = {pool.submit(_run, job): job for job in jobs}
        for ended in as_completed(asked):
            error = ended.exception()
            if error is not None:
                failed += 1
                print(f"failed: {asked[ended]}", file=sys.stderr)
                traceback.print_exception(error)
    return failed


_runner: list[Callable[[object], None]] = []
"""What this process runs jobs with."""


def _start(make_runner: Callable[[], Callable[[Job], None]], threads: int) -> None:
    pin_threads(threads)
    _runner[:] = [make_runner()]  # type: ignore[list-item]  # jobs of one run are of one kind


def _run(job: object) -> None:
    _runner[0](job)
