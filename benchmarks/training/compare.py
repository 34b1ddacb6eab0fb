"""Training throughput against PEFT and ``transformers.Trainer``, and what each technique brings.

``python -m benchmarks training`` runs every side in a process of its own, in an order that turns
round from one round to the next, and adds to ``benchmarks/results/training.json``. A batch is the
rows of one optimizer step, all in one forward. Each round has a seed of its own, the same on all
sides: rows differ in length, so that few steps of one seed would favour a side by chance.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, write_result
from benchmarks.training.ablations import ABLATIONS
from benchmarks.training.cases import CASES
from benchmarks.training.peer import ORDERS

OURS = "ours"


def command_of(side: str, case: str, asked: argparse.Namespace) -> list[str]:
    """The command line of a side: ``ours``, ``ours without X`` or ``peer X``."""
    kind, _, rest = side.partition(" ")
    module = "benchmarks.training.ours" if kind == OURS else "benchmarks.training.peer"
    argv = [sys.executable, "-m", module, "--case", case, "--threads", str(asked.threads)]
    argv += ["--models-dir", str(asked.models_dir)]
    if rest:
        argv += ["--without", rest.removeprefix("without ")] if kind == OURS else ["--order", rest]
    return argv


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
    print(
        f"{case} {side}: {run['rows_per_second']:.2f} rows/s, "
        f"{run['rows_per_cpu_second']:.2f} rows/CPU s, {run['peak_mib']:.0f} MiB, "
        f"test {run.get('test')}",
        flush=True,
    )
    return run


def summarize(case: str, runs: list[Any]) -> dict[str, Any]:
    """Medians of each side, and our ratio to it."""
    sides = dict.fromkeys(run["side"] for run in runs)

    def median(side: str, name: str) -> float:
        return statistics.median(run[name] for run in runs if run["side"] == side)

    found: dict[str, Any] = {"metric": CASES[case].metric, "bar": CASES[case].bar}
    for side in sides:
        own = [run for run in runs if run["side"] == side]
        judged = [run["test"] for run in own if "test" in run]
        found[side] = {
            "runs": len(own),
            "rows_per_second": round(median(side, "rows_per_second"), 3),
            "rows_per_cpu_second": round(median(side, "rows_per_cpu_second"), 3),
            "tokens_per_row": round(statistics.mean(run["tokens_per_row"] for run in own), 1),
            "peak_mib": round(max(run["peak_mib"] for run in own)),
            "ours_by_wall": round(
                median(OURS, "rows_per_second") / median(side, "rows_per_second"), 2
            ),
            "ours_by_cpu": round(
                median(OURS, "rows_per_cpu_second") / median(side, "rows_per_cpu_second"), 2
            ),
            "ours_by_cpu_per_token": round(
                median(OURS, "tokens_per_cpu_second") / median(side, "tokens_per_cpu_second"), 2
            ),
            **({"test": round(judged[0], 4)} if judged else {}),
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
    parser.add_argument("--peers", nargs="*", choices=ORDERS, default=list(ORDERS))
    parser.add_argument("--without", nargs="*", choices=ABLATIONS, default=list(ABLATIONS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--judge", action="store_true", help="let the first round take the metric")
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--keep", action="store_true", help="add to the runs of before")
    asked = parser.parse_args()
    path = RESULTS / "training.json"
    runs = json.loads(path.read_text())["runs"] if asked.keep and path.exists() else []
    sides = [OURS, *(f"peer {order}" for order in asked.peers)]
    sides += [f"{OURS} without {name}" for name in asked.without]
    for number in range(asked.rounds):
        for case in asked.cases:
            for side in sides if number % 2 == 0 else reversed(sides):
                judge = asked.judge and number == 0
                runs.append(run_side(side, case, asked, seed=number, judge=judge))
    write_result("training", summary=summarize_all(runs), runs=runs)


if __name__ == "__main__":
    main()
