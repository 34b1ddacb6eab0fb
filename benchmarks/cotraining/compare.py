"""Eight jobs in one forward against the same eight one after another, batch 4, LoRA r = 8.

``python -m benchmarks cotraining`` runs each way in a process of its own, in an order that turns
round from one round to the next, and writes ``benchmarks/results/cotraining-CASE.json``. Both ways
run the same code for each job and must end with the same digests. A copy is a process that trains
one job: eight of them are what the same jobs at the same time would take otherwise.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.cotraining.side import CASES
from benchmarks.record import write_result

WAYS = ("together", "sequence")
BAR = 1.2


def run_side(case: str, way: str, asked: argparse.Namespace, *, jobs: int) -> dict[str, Any]:
    """One process.

    Returns:
        What the last line of its output says.

    Raises:
        SystemExit: It failed.
    """
    argv = [sys.executable, "-m", "benchmarks.cotraining.side", "--case", case, "--way", way]
    argv += ["--jobs", str(jobs), "--threads", str(asked.threads)]
    argv += ["--models-dir", str(asked.models_dir)]
    argv += [] if asked.steps is None else ["--steps", str(asked.steps)]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    run = {"case": case, "way": way, "jobs": jobs, "threads": asked.threads, **found}
    print(
        f"{case} {way} {jobs}: {run['rows_per_second']:.2f} rows/s, "
        f"{run['rows_per_cpu_second']:.2f} rows/CPU s, {run['peak_mib']:.0f} MiB",
        flush=True,
    )
    return run


def summarize(case: str, runs: list[dict[str, Any]], jobs: int) -> dict[str, Any]:
    """Ratios of the medians, and whether the digests are the same.

    Raises:
        SystemExit: They are not.
    """
    digests = {tuple(run["digests"]) for run in runs if run["jobs"] == jobs}
    if len(digests) != 1:
        raise SystemExit(f"{case}: the jobs ended with other bytes in company than alone")

    def median(way: str, name: str) -> float:
        of_way = [run for run in runs if (run["way"], run["jobs"]) == (way, jobs)]
        return float(statistics.median(run[name] for run in of_way))

    copy_mib = max(run["peak_mib"] for run in runs if run["jobs"] == 1)
    return {
        "bar": BAR,
        "by_wall": round(
            median("together", "rows_per_second") / median("sequence", "rows_per_second"), 2
        ),
        "by_cpu": round(
            median("together", "rows_per_cpu_second") / median("sequence", "rows_per_cpu_second"),
            2,
        ),
        "same_digests": True,
        "together_mib": round(median("together", "peak_mib")),
        "copies_mib": round(jobs * copy_mib),
    }


def main() -> None:
    """Run the rounds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=None, help="of each job, above 5")
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    asked = parser.parse_args()
    for case in asked.cases:
        runs = [run_side(case, "sequence", asked, jobs=1)]
        for number in range(asked.rounds):
            ways = WAYS if number % 2 == 0 else WAYS[::-1]
            runs += [run_side(case, way, asked, jobs=asked.jobs) for way in ways]
        summary = summarize(case, runs, asked.jobs)
        print(json.dumps(summary, indent=1))
        write_result(f"cotraining-{case}", summary=summary, runs=runs)


if __name__ == "__main__":
    main()
