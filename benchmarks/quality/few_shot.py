"""What default settings make of 8 to 64 rows: ``python -m benchmarks few-shot --data DIR``.

Each seed draws rows of its own from a set's training file, as many of each class as possible. There
is no validation, as somebody with 16 rows would have it, so the last step counts on both sides. The
peer is PEFT and ``transformers.Trainer`` by its published recipe on the same rows. What stands in
``benchmarks/results/quality-few-shot.jsonl`` is not run again.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.grid import BASES, METHODS, SETS
from benchmarks.quality.jobs import QualityJob, Splits, Workbench
from benchmarks.quality.journal import Journal
from benchmarks.quality.peer_jobs import RECIPES, PeerJob
from benchmarks.quality.peer_jobs import run as run_peer
from benchmarks.quality.rows import read_splits, take_rows
from benchmarks.record import RESULTS
from peft_engine.bases.base import describe_base
from peft_engine.runtime import pin_threads

JOURNAL = RESULTS / "quality-few-shot.jsonl"
COUNTS = (8, 16, 32, 64)
TEST_ROWS = 400
"""Evenly spaced test rows, or as many as the set's full runs have; every run answers them three
times."""
SETS_OF_FEW_CLASSES = ("mr_sentiment", "snli_pairs", "stsb_open_similarity")
"""Sets whose classes are fewer than the fewest rows."""


def main() -> None:
    """Run what is missing: ours first, then the peer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS_OF_FEW_CLASSES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["lora", "bitfit"])
    parser.add_argument("--peer-methods", nargs="*", choices=RECIPES, default=["lora"])
    parser.add_argument("--rows", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    pin_threads(asked.threads)
    journal, bench = Journal(JOURNAL), Workbench(asked.data, asked.models_dir)
    for name in asked.sets:
        splits = read_splits(asked.data / name, task=SETS[name].task)
        for seed in asked.seeds:
            for rows in asked.rows:
                few = draw_few(splits, rows=rows, seed=seed, test_rows=test_rows_of(name))
                for method in asked.methods:
                    own = QualityJob(name, method, seed, train_rows=rows)
                    _run_ours(bench, journal, own, few, rows)
                for method in asked.peer_methods:
                    _run_peer(journal, PeerJob(name, method, seed), few, rows, asked.models_dir)


def test_rows_of(name: str) -> int:
    """Most test rows of a set."""
    return min(TEST_ROWS, SETS[name].test_rows or TEST_ROWS)


def key_of(who: str, rows: int, job: QualityJob | PeerJob) -> str:
    """What the journal knows a run by.

    Args:
        who: ``ours`` or ``peer``.
        rows: Training rows.
        job: The job.

    Returns:
        The key.
    """
    return f"{who}|{rows}|{test_rows_of(job.set)}|{job.key}"


def draw_few(
    splits: Splits, *, rows: int, seed: int, test_rows: int
) -> dict[str, list[dict[str, Any]]]:
    """Few training rows, no validation, a bounded test split.

    Args:
        splits: All records.
        rows: Training rows.
        seed: Which ones.
        test_rows: Test rows.

    Returns:
        Records by split. Classes differ by one row at most, where there are enough rows of each.
    """
    drawn = list(splits["train"])
    random.Random(seed).shuffle(drawn)
    return {
        "train": _by_turns(drawn)[:rows],
        "validation": [],
        "test": take_rows(splits["test"], test_rows, spread=True),
    }


def _by_turns(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records with their classes in turn; without classes as they are."""
    seen: dict[str, int] = {}
    turns = []
    for record in records:
        label = str(record.get("label"))
        seen[label] = seen.get(label, 0) + 1
        turns.append(seen[label])
    if len(seen) == 1:
        return list(records)
    return [records[place] for place in sorted(range(len(records)), key=turns.__getitem__)]


def _run_ours(
    bench: Workbench,
    journal: Journal,
    job: QualityJob,
    few: dict[str, list[dict[str, Any]]],
    rows: int,
) -> None:
    key = key_of("ours", rows, job)
    if not journal.has(key):
        line = bench.run(job, few) | {"key": key, "who": "ours"}
        journal.add(line)
        _tell(line)


def _run_peer(
    journal: Journal,
    job: PeerJob,
    few: dict[str, list[dict[str, Any]]],
    rows: int,
    models_dir: Path,
) -> None:
    key = key_of("peer", rows, job)
    if not journal.has(key):
        own = SETS[job.set]
        base = describe_base(BASES[own.base], name=own.base, models_dir=models_dir)
        line = run_peer(job, few, base.directory) | {"key": key, "who": "peer", "train_rows": rows}
        journal.add(line)
        _tell(line)


def _tell(line: dict[str, Any]) -> None:
    name, who, seconds = line["set"], line["who"], line["processor_seconds"]
    print(
        f"{name} {line['train_rows']} rows {who} {line['method']} {line['seed']} {seconds} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
