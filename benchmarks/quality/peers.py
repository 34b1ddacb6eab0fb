"""The peer: PEFT and ``transformers.Trainer`` on the same rows, by the published recipe.

``python -m benchmarks quality-peer --data DIR [--sets …]`` appends to
``benchmarks/results/quality-peer.jsonl``, never twice.
"""

import argparse
from functools import partial
from pathlib import Path

from benchmarks.quality.grid import SETS
from benchmarks.quality.peer_jobs import RECIPES, PeerBench, PeerJob
from benchmarks.quality.pool import run_missing
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
    jobs = [
        PeerJob(name, method, seed)
        for seed in asked.seeds
        for name in asked.sets
        for method in asked.methods
    ]
    make = partial(PeerBench, asked.data, asked.models_dir)
    failed = run_missing(jobs, make, JOURNAL, workers=asked.workers, threads=asked.threads)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
