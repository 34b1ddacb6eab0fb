"""Runs side by side: one process each, jobs in their order, every finished one kept at once.

For a machine with many cores and an accelerator that one small job does not fill. On two cores it
gains nothing.
"""

import multiprocessing
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

from peft_engine.runtime import pin_threads

Job = TypeVar("Job")


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
    _runner[:] = [make_runner()]  # type: ignore[list-item]  jobs of one run are of one kind


def _run(job: object) -> None:
    _runner[0](job)
