"""Dealing rows: shares, strata, copies on one side, the same deal for the same seed."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_engine.records import DatasetReport, SplitSpec, build_dataset, read_canonical
from peft_engine.records.census import fold
from peft_engine.records.splits import TEST, TRAIN, VALIDATION, deal

SHARES = (0.8, 0.1, 0.1)


def dealt(keys: list[int], labels: list[int], seed: int = 0) -> list[int]:
    return deal(np.array(keys, np.uint64), np.array(labels, np.int64), SHARES, seed).tolist()


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), min_size=1, max_size=200),
    st.integers(0, 2**63 - 1),
)
def test_copies_stay_together_and_every_label_is_in_train(
    rows: list[tuple[int, int]], seed: int
) -> None:
    label_of = dict(rows)  # one label a key
    keys = [key for key, _ in rows]
    labels = [label_of[key] for key in keys]
    splits = dealt(keys, labels, seed)
    side = dict(zip(keys, splits, strict=True))
    assert all(side[key] == split for key, split in zip(keys, splits, strict=True))
    assert {label for label, split in zip(labels, splits, strict=True) if split == TRAIN} == set(
        labels
    )


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("Where is it?", "  where is\tIT", True),
        ("snake_case", "snake case", True),
        ("\u00abOui\u00bb, dit-elle", "oui dit elle", True),
        ("caf\u00e9", "cafe\u0301!", True),
        ("\u0915\u093f", "\u0915\u093e", False),  # vowels are marks
        ("love it \U0001f600", "love it \U0001f621", False),
        ("C++", "C#", False),
        ("x > 5", "x < 5", False),
        ("?!", "...", False),
    ],
)
def test_near_copies_differ_in_case_blanks_and_punctuation_alone(
    one: str, other: str, alike: bool
) -> None:
    assert (fold(one) == fold(other)) is alike


def test_shares_hold_in_each_class() -> None:
    labels = [i % 4 for i in range(4_000)]
    splits = dealt(list(range(4_000)), labels)
    counts = Counter(zip(labels, splits, strict=True))
    for label in range(4):
        assert abs(counts[label, TRAIN] - 800) <= 2
        assert abs(counts[label, VALIDATION] - 100) <= 2
        assert abs(counts[label, TEST] - 100) <= 2


def test_many_small_classes_still_give_a_test_split() -> None:
    labels = [i // 5 for i in range(500)]
    counts = Counter(dealt(list(range(500)), labels))
    assert 40 <= counts[TEST] <= 60
    assert 40 <= counts[VALIDATION] <= 60


@pytest.mark.parametrize("rows", range(3, 12))
def test_very_small_sets_have_all_splits(rows: int) -> None:
    assert set(dealt(list(range(rows)), [0] * rows)) == {TRAIN, VALIDATION, TEST}


def test_the_order_of_rows_does_not_matter_and_the_seed_does() -> None:
    keys = list(range(1_000))
    first = dict(zip(keys, dealt(keys, [0] * 1_000), strict=True))
    back = dict(zip(keys[::-1], dealt(keys[::-1], [0] * 1_000), strict=True))
    assert first == back
    assert first != dict(zip(keys, dealt(keys, [0] * 1_000, seed=1), strict=True))


def test_a_deal_is_fixed_for_ever() -> None:
    # A changed deal would change every trained adapter: rows would move between train and test.
    assert dealt(list(range(20)), [0, 1] * 10, seed=7) == [
        0,
        1,
        0,
        0,
        0,
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        2,
        0,
        0,
        2,
        0,
        0,
        0,
        0,
    ]


def test_a_share_of_nothing_gives_nothing() -> None:
    splits = deal(np.arange(50, dtype=np.uint64), np.zeros(50, np.int64), (0.9, 0.1, 0.0), 0)
    assert TEST not in splits


@pytest.mark.parametrize("shares", [(0.8, 0.1, 0.2), (0.0, 0.5, 0.5), (1.1, -0.1, 0.0)])
def test_shares_must_add_up(shares: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="add up to 1"):
        SplitSpec(fractions=shares)


def test_labels_of_several_label_rows_are_all_in_train(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "labels": ["common", f"rare {i // 2}"]} for i in range(40)]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = build_dataset({"all": path}, out_dir=tmp_path / "out")
    assert report.status == "ready"
    in_train = {
        label for row in read_canonical(tmp_path / "out" / "train.jsonl") for label in row["labels"]
    }
    assert in_train == {"common", *(f"rare {i}" for i in range(20))}


def test_two_builds_write_the_same_bytes(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(100)]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = build_dataset({"all": path}, out_dir=tmp_path / "1")
    two = build_dataset({"all": path}, out_dir=tmp_path / "2")
    assert one == two
    for name in ("train", "validation", "test"):
        assert (tmp_path / "1" / f"{name}.jsonl").read_bytes() == (
            tmp_path / "2" / f"{name}.jsonl"
        ).read_bytes()


def reported(rows: list[dict[str, Any]], folder: Path, **options: Any) -> DatasetReport:
    folder.mkdir(exist_ok=True)
    path = folder / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = build_dataset({"all": path}, out_dir=folder / "out", **options)
    assert report.status == "ready"
    return report


def built(rows: list[dict[str, Any]], folder: Path) -> dict[str, list[str]]:
    """Each split's lines, in one order."""
    reported(rows, folder)
    return {
        name: sorted((folder / "out" / f"{name}.jsonl").read_text().splitlines())
        for name in ("train", "validation", "test")
    }


def of_classes(count: int) -> Callable[[random.Random], list[dict[str, Any]]]:
    return lambda draw: [
        {"text": f"t{i}", "label": f"class {draw.randrange(count)}"} for i in range(400)
    ]


def of_several_labels(draw: random.Random) -> list[dict[str, Any]]:
    names = [f"label {i}" for i in range(12)]
    return [{"text": f"t{i}", "labels": draw.sample(names, draw.randint(0, 4))} for i in range(300)]


def of_names(draw: random.Random) -> list[dict[str, Any]]:
    tags = ["O", *(f"B-{name}" for name in ("PER", "LOC", "ORG", "MISC", "WORK", "DATE"))]
    return [
        {"tokens": [f"w{i}", "and", f"v{i}"], "tags": draw.choices(tags, k=3)} for i in range(300)
    ]


def of_copies(draw: random.Random) -> list[dict[str, Any]]:
    """Copies, near copies, and copies with other labels, some of which stand nowhere else."""
    spellings = ("t {}", "T {}", "t {}!")
    return [
        {
            "text": draw.choice(spellings).format(draw.randrange(120)),
            "label": f"class {min(draw.randrange(60), draw.randrange(60))}",
        }
        for _ in range(300)
    ]


@pytest.mark.parametrize(
    "rows_of",
    [of_classes(7), of_classes(77), of_several_labels, of_names, of_copies],
    ids=["7 classes", "77 classes", "several labels", "names", "copies"],
)
def test_the_order_of_an_upload_does_not_matter(
    tmp_path: Path, rows_of: Callable[[random.Random], list[dict[str, Any]]]
) -> None:
    draw = random.Random(0)
    rows = rows_of(draw)
    first = built(rows, tmp_path / "first")
    assert first["validation"]
    assert first["test"]
    for turn in range(4):
        draw.shuffle(rows)
        assert built(rows, tmp_path / str(turn)) == first


def of_unlike_labels(draw: random.Random) -> list[dict[str, Any]]:
    """Six of twenty labels a row: hardly two rows have the same ones."""
    names = [f"label {i}" for i in range(20)]
    return [{"text": f"t{i}", "labels": draw.sample(names, 6)} for i in range(400)]


def of_unlike_names(draw: random.Random) -> list[dict[str, Any]]:
    names = [f"B-T{i}" for i in range(12)]
    return [
        {"tokens": [f"w{i}", *"abcd"], "tags": ["O", *draw.sample(names, 4)]} for i in range(400)
    ]


@pytest.mark.parametrize("rows_of", [of_unlike_labels, of_unlike_names])
def test_rows_of_several_labels_are_cut_as_asked(
    tmp_path: Path, rows_of: Callable[[random.Random], list[dict[str, Any]]]
) -> None:
    report = reported(rows_of(random.Random(0)), tmp_path)
    counts = {name: split.rows for name, split in report.splits.items()}
    assert counts == {"train": 320, "validation": 40, "test": 40}
    assert set(report.splits["train"].label_counts) == set(report.labels)
    assert not report.warnings
    for label, count in report.label_counts.items():
        assert report.splits["test"].label_counts[label] == pytest.approx(count / 10, rel=0.7)


def test_the_order_of_labels_in_a_row_does_not_matter(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = of_several_labels(draw)
    turned = [row | {"labels": draw.sample(row["labels"], len(row["labels"]))} for row in rows]
    texts = [
        {name: {json.loads(line)["text"] for line in lines} for name, lines in splits.items()}
        for splits in (built(rows, tmp_path / "1"), built(turned, tmp_path / "2"))
    ]
    assert texts[0] == texts[1]


def test_splits_far_smaller_than_asked_are_told(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "labels": ["common", f"own {i}"]} for i in range(30)]
    report = reported(rows, tmp_path)
    assert [report.splits[name].rows for name in ("train", "validation", "test")] == [30, 0, 0]
    (warning,) = [w for w in report.warnings if w.code == "small_split"]
    assert warning.count == 2
    assert "validation has 0 of 30 rows (asked: 10 %), test has 0 of 30" in warning.message


def test_a_split_that_nobody_asked_for_is_not_missed(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(30)]
    report = reported(rows, tmp_path, split=SplitSpec(fractions=(0.9, 0.1, 0.0)))
    assert report.splits["test"].rows == 0
    assert not report.warnings
