"""Training throughput against PEFT and ``transformers.Trainer``, and what each technique brings.

``python -m benchmarks training`` runs every side in a process of its own, in an order that turns
round from one round to the next, and adds to ``benchmarks/results/training.json``, on CUDA to
``training-cuda.json``. A batch is the rows of one optimizer step, all in one forward. Each round
has a seed of its own, the same on all sides: rows differ in length, so that few steps of one seed
would favour a side by chance. On a CPU the base is fp32 on all sides; on CUDA it is what the case
says, and only the wall counts.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, write_result
from benchmarks.training.ablations import ABLATIONS, OF_ENCODERS
from benchmarks.training.cases import CASES
from benchmarks.training.peer import AUTOCAST, ORDERS
from peft_engine.runtime import pick_device

OURS = "ours"

SPEEDS = {
    "rows_per_second": "ours_by_wall",
    "tokens_per_second": "ours_by_wall_per_token",
    "rows_per_cpu_second": "ours_by_cpu",
    "tokens_per_cpu_second": "ours_by_cpu_per_token",
}
"""Speeds of a run, and the name of our ratio to another side. Runs on CUDA have none by processor
time; some of before have none by tokens and wall."""

_PEERS = [order for order in ORDERS if order != AUTOCAST]


def command_of(side: str, case: str, asked: argparse.Namespace) -> list[str]:
    """The command line of a side: ``ours``, ``ours without X`` or ``peer X``."""
    kind, _, rest = side.partition(" ")
    module = "benchmarks.training.ours" if kind == OURS else "benchmarks.training.peer"
    argv = [sys.executable, "-m", module, "--case", case, "--threads", str(asked.threads)]
    argv += ["--models-dir", str(asked.models_dir), "--device", asked.device]
    argv += ["--steps", str(asked.steps)] if asked.steps else []
    if rest:
        argv += ["--without", rest.removeprefix("without ")] if kind == OURS else ["--order", rest]
    return argv


def sides_of(case: str, *, peers: Sequence[str], without: Sequence[str]) -> list[str]:
    """What is run of a case: ours, the peers, and ours without each technique that acts there."""
    texts = CASES[case].task == "text-generation"
    acting = [name for name in without if texts or name in OF_ENCODERS]
    return [OURS, *(f"peer {order}" for order in peers), *(f"{OURS} without {n}" for n in acting)]


def run_side(side: str, case: str, asked: argparse.Namespace, *, seed: int, judge: bool) -> Any:
    """One process.

    Returns:
        What the last line of its output says.

    Raises:
        SystemExit: It failed.
    """
    argv = command_of(side, case, asked) + ["--seed", str(seed)] + ["--evaluate"] * judge
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    run = {"case": case, "side": side, "seed": seed, "threads": asked.threads, **found}
    names = (*SPEEDS, "peak_mib", "peak_device_mib", "test")
    told = ", ".join(f"{name} {run[name]:.4g}" for name in names if name in run)
    print(f"{case} {side}: {told}", flush=True)
    return run


def summarize(case: str, runs: list[Any]) -> dict[str, Any]:
    """Medians of each side, and our ratio to it."""
    sides = dict.fromkeys(run["side"] for run in runs)
    speeds = [name for name in SPEEDS if all(name in run for run in runs)]

    def median(side: str, name: str) -> float:
        return float(statistics.median(run[name] for run in runs if run["side"] == side))

    found: dict[str, Any] = {"metric": CASES[case].metric, "bar": CASES[case].bar}
    for side in sides:
        own = [run for run in runs if run["side"] == side]
        judged = [run["test"] for run in own if "test" in run]
        peaks = [name for name in ("peak_mib", "peak_device_mib") if name in own[0]]
        found[side] = {
            "runs": len(own),
            **{name: round(median(side, name), 3) for name in speeds},
            "tokens_per_row": round(statistics.mean(run["tokens_per_row"] for run in own), 1),
            **{name: round(max(run[name] for run in own)) for name in peaks},
            **(
                {"test": round(statistics.mean(judged), 4), "judged": len(judged)} if judged else {}
            ),
        }
        if OURS in sides:  # a file is written after each side, whichever came first
            found[side] |= {
                SPEEDS[name]: round(median(OURS, name) / median(side, name), 2) for name in speeds
            }
    return found


def summarize_all(runs: list[Any]) -> dict[str, Any]:
    """The table of each case and number of threads."""
    found = {}
    for case, threads in dict.fromkeys((run["case"], run["threads"]) for run in runs):
        own = [run for run in runs if (run["case"], run["threads"]) == (case, threads)]
        found[f"{case}, {threads} threads"] = summarize(case, own)
    return found


def main() -> None:
    """Run the rounds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--peers", nargs="*", choices=ORDERS, default=_PEERS)
    parser.add_argument("--without", nargs="*", choices=ABLATIONS, default=list(ABLATIONS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--steps", type=int, default=None, help="of a run; None: the case's own")
    parser.add_argument(
        "--judge", type=int, default=0, metavar="N", help="let the first N rounds take the metric"
    )
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--keep", action="store_true", help="add to the runs of before")
    asked = parser.parse_args()
    on_cuda = pick_device(asked.device).type == "cuda"
    if AUTOCAST in asked.peers and not on_cuda:
        parser.error(f"{AUTOCAST} is for CUDA: on a CPU both sides compute in fp32")
    name = "training-cuda" if on_cuda else "training"
    path = RESULTS / f"{name}.json"
    runs = json.loads(path.read_text())["runs"] if asked.keep and path.exists() else []
    for number in range(asked.rounds):
        for case in asked.cases:
            sides = sides_of(case, peers=asked.peers, without=asked.without)
            for side in sides if number % 2 == 0 else reversed(sides):
                judge = number < asked.judge
                runs.append(run_side(side, case, asked, seed=number, judge=judge))
                # After every side: on a busy or a lent machine a run may be cut short.
                write_result(name, summary=summarize_all(runs), runs=runs)


if __name__ == "__main__":
    main()
