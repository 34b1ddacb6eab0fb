"""Runs the comparison, or a part of it: ``python -m benchmarks quality --data DIR [--sets …]``.

Each finished run is a line of ``benchmarks/results/quality.jsonl``; what stands there already is
not run again, so the same command goes on where it was stopped. With ``--tune`` the settings given
are tried instead of the defaults, by validation alone, and go to ``quality-tuning.jsonl``.
"""

import argparse
import json
from functools import partial
from pathlib import Path

from benchmarks.quality.grid import METHODS, SEEDS, SETS, is_trained
from benchmarks.quality.jobs import QualityJob, Workbench
from benchmarks.quality.pool import run_missing
from benchmarks.record import RESULTS

JOURNAL = RESULTS / "quality.jsonl"
TUNING = RESULTS / "quality-tuning.jsonl"


def main() -> None:
    """Run what is missing: every set by every method, then the next seed.

    Raises:
        SystemExit: With 1 when a run has failed, else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes side by side")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--tune", nargs="+", metavar="JSON", help='{"learning_rate": …}')
    parser.add_argument("--options", type=json.loads, default={}, help="options of the method")
    parser.add_argument("--train-rows", type=int, default=None)
    asked = parser.parse_args()
    path = TUNING if asked.tune else JOURNAL
    jobs = [
        QualityJob(
            name,
            method,
            seed,
            training=json.loads(training),
            options=asked.options,
            train_rows=asked.train_rows,
            with_test=not asked.tune,
            precision=asked.precision,
        )
        for seed in asked.seeds
        for name in asked.sets
        for method in asked.methods
        if is_trained(name, method)
        for training in asked.tune or ["{}"]
    ]
    make = partial(Workbench, asked.data, asked.models_dir)
    failed = run_missing(jobs, make, path, workers=asked.workers, threads=asked.threads)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
