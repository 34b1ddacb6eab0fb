"""The peer: PEFT and ``transformers.Trainer`` on the same rows, by the published recipe.

``python -m benchmarks quality-peer --data DIR [--sets …]`` appends to
``benchmarks/results/quality-peer.jsonl``, never twice.
"""

import argparse
from functools import partial
from pathlib import Path

from benchmarks.quality.grid import SETS
from benchmarks.quality.journal import Journal
from benchmarks.quality.peer_jobs import RECIPES, PeerJob, PeerRunner
from benchmarks.quality.pool import run_jobs
from benchmarks.record import RESULTS

JOURNAL = RESULTS / "quality-peer.jsonl"


def main() -> None:
    """Run what is missing: every set by every method, then the next seed.

    Raises:
        SystemExit: With 1 when a run has failed, else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--methods", nargs="+", choices=RECIPES, default=["lora"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes side by side")
    asked = parser.parse_args()
    finished = {line["key"] for line in Journal(JOURNAL)}
    jobs = [
        PeerJob(name, method, seed)
        for seed in asked.seeds
        for name in asked.sets
        for method in asked.methods
    ]
    missing = [job for job in jobs if job.key not in finished]
    print(f"{len(missing)} of {len(jobs)} runs to make", flush=True)
    make = partial(PeerRunner, asked.data, asked.models_dir, JOURNAL)
    failed = run_jobs(missing, make, workers=asked.workers, threads=asked.threads)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
