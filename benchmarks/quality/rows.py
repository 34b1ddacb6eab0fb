"""Rows of a data set as the service would hand them to training: read, validated, canonical."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peft_engine.records import build_dataset, read_canonical

Records = dict[str, list[dict[str, Any]]]
SPLITS = ("train", "validation", "test")


def read_splits(folder: Path, *, task: str) -> Records:
    """Canonical records by split.

    Args:
        folder: With ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl``.
        task: The task.

    Returns:
        The records.

    Raises:
        ValueError: The service would refuse the data set.
    """
    files = {split: folder / f"{split}.jsonl" for split in SPLITS}
    with TemporaryDirectory() as scratch:
        report = build_dataset(files, out_dir=Path(scratch), task=task)
        if report.status != "ready":
            raise ValueError(f"{folder.name}: {report.problems}")
        return {split: list(read_canonical(Path(scratch) / f"{split}.jsonl")) for split in SPLITS}


def take_rows(records: Sequence[Any], count: int | None, *, spread: bool) -> list[Any]:
    """Some of the rows.

    Args:
        records: All rows.
        count: How many; None: all.
        spread: Evenly spaced, since a file may be sorted; else the first ones.

    Returns:
        The rows in order.
    """
    if count is None or count >= len(records):
        return list(records)
    step = len(records) / count if spread else 1
    return [records[int(place * step)] for place in range(count)]


def bound_rows(splits: Mapping[str, Sequence[Any]], *, train: int | None, test: int | None) -> Any:
    """The splits with fewer rows.

    Args:
        splits: Records by split.
        train: Training rows; None: all. Evenly spaced.
        test: Test rows; None: all. Evenly spaced.

    Returns:
        Records by split.
    """
    bounds = {"train": train, "validation": None, "test": test}
    return {
        name: take_rows(records, bounds.get(name), spread=True) for name, records in splits.items()
    }
