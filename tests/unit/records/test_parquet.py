"""Parquet: the rows that JSON Lines would give, the same refusals, and files made to do harm."""

import gzip
import io
import json
import random
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peft_engine.records import Limits
from tests.unit.records.test_reading import all_rows, build, codes, jsonl

TASKS: dict[str, list[dict[str, Any]]] = {
    "text-classification": [{"text": f"row {i}", "label": "ab"[i % 2]} for i in range(40)],
    "token-classification": [
        {"tokens": ["in", f"town{i}"], "tags": ["O", "B-LOC"]} for i in range(40)
    ],
    "relation-extraction": [
        {
            "text": f"a{i:02} likes b{i:02}",
            "head": {"start": 0, "end": 3},
            "tail": {"start": 10, "end": 13},
            "label": "ab"[i % 2],
        }
        for i in range(40)
    ],
    "question-answering": [
        {
            "question": f"who is {i}",
            "context": f"it is me {i}",
            "answers": [{"text": "me", "start": 6}] if i % 3 else [],
        }
        for i in range(40)
    ],
    "regression": [{"text": f"row {i}", "value": i / 4} for i in range(40)],
    "multiple-choice": [
        {"question": f"what {i}", "choices": [f"a{i}", f"b{i}"], "answer": i % 2} for i in range(40)
    ],
    "text-generation": [
        {
            "messages": [
                {"role": "user", "content": f"say {i}"},
                {"role": "assistant", "content": f"{i}"},
            ]
        }
        for i in range(40)
    ],
}


def parquet(rows: Any, **options: Any) -> bytes:
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("task", TASKS)
def test_the_rows_are_those_of_json_lines(task: str, packed: bool, tmp_path: Path) -> None:
    data = parquet(TASKS[task], row_group_size=7)
    report = build(tmp_path, gzip.compress(data) if packed else data, "x.parquet", task=task)
    assert report.status == "ready", report.problems
    assert (report.format, report.rows, report.rows_read) == ("parquet", 40, 40)
    assert not report.warnings
    found = all_rows(tmp_path)
    build(tmp_path, jsonl(TASKS[task]), task=task)
    assert found == all_rows(tmp_path)


def test_its_content_tells_it_whatever_its_name_or_stated_format(tmp_path: Path) -> None:
    data = parquet(TASKS["text-classification"])
    assert build(tmp_path, data, "x.parquet", format="parquet").format == "parquet"
    report = build(tmp_path, data, "x.csv")
    assert (report.status, report.format) == ("ready", "parquet")


def test_types_of_other_libraries_are_read(tmp_path: Path) -> None:
    """Categories, large and viewed texts, small numbers, lists of fixed size."""
    count = 40
    table = pa.table(
        {
            "text": pa.array([f"row {i}" for i in range(count)], pa.large_string()),
            "text_pair": pa.array([f"pair {i}" for i in range(count)]),
            "label": pa.array(["ab"[i % 2] for i in range(count)]).dictionary_encode(),
        }
    )
    assert build(tmp_path, parquet(table), "x.parquet").status == "ready"
    numbers = pa.table(
        {
            "text": [f"row {i}" for i in range(count)],
            "value": pa.array([i / 8 for i in range(count)], pa.float32()),
        }
    )
    assert build(tmp_path, parquet(numbers), "x.parquet", task="regression").status == "ready"


def test_a_mapping_and_a_split_column_work(tmp_path: Path) -> None:
    rows = [
        {"sentence": f"row {i}", "target": "ab"[i % 2], "part": "dev" if i < 8 else "train"}
        for i in range(40)
    ]
    report = build(
        tmp_path, parquet(rows), "x.parquet", mapping={"text": "sentence", "label": "target"}
    )
    assert report.status == "ready"
    assert "part" in str(report.notes)


def with_features(rows: list[dict[str, Any]], features: Any) -> bytes:
    """As Hugging Face datasets writes it."""
    table = pa.Table.from_pylist(rows)
    text = features if isinstance(features, str) else json.dumps({"info": {"features": features}})
    return parquet(table.replace_schema_metadata({"huggingface": text}))


CLASS = {"names": ["neg", "pos"], "_type": "ClassLabel"}
TAG = {"names": ["O", "B-LOC"], "_type": "ClassLabel"}


@pytest.mark.parametrize(
    "feature", [{"feature": TAG, "_type": "Sequence"}, {"feature": TAG, "_type": "List"}, [TAG]]
)
def test_class_numbers_become_the_names_that_the_file_gives(feature: Any, tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "label": i % 2} for i in range(40)]
    report = build(tmp_path, with_features(rows, {"label": CLASS}), "x.parquet")
    assert (report.status, report.labels) == ("ready", ["neg", "pos"])
    (note,) = [note for note in report.notes if note.code == "classes_named"]
    assert '"label" (2 names)' in note.message
    tagged = [{"tokens": ["in", f"town{i}"], "tags": [0, 1]} for i in range(40)]
    data = with_features(tagged, {"tags": feature})
    report = build(tmp_path, data, "x.parquet", task="token-classification")
    assert report.status == "ready", report.problems
    assert {tuple(row["tags"]) for row in all_rows(tmp_path)} == {("O", "B-LOC")}  # type: ignore[arg-type]


def test_no_label_is_null_and_a_number_without_a_name_stays(tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "label": i % 2} for i in range(20)]
    rows[3]["label"] = -1
    report = build(tmp_path, with_features(rows, {"label": CLASS}), "x.parquet")
    assert [(p.line, p.code) for p in report.problems] == [(4, "null_value")]
    rows[3]["label"] = 7
    report = build(tmp_path, with_features(rows, {"label": CLASS}), "x.parquet")
    assert set(codes(report)) == {"label_types_mixed"}


@pytest.mark.parametrize(
    "features",
    [
        *("", "no JSON", "[1]", '{"info": 3}', '{"info": {"features": [3]}}', "[" * 100_000),
        *({"label": {"names": "neg", "_type": "ClassLabel"}}, {"label": {"_type": "ClassLabel"}}),
        *({"label": {"names": [1, 2], "_type": "ClassLabel"}}, {"label": 3}, {"other": CLASS}),
    ],
)
def test_names_of_another_shape_are_no_names(features: Any, tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "label": "ab"[i % 2]} for i in range(20)]
    report = build(tmp_path, with_features(rows, features), "x.parquet")
    assert (report.status, report.labels) == ("ready", ["a", "b"])


@pytest.mark.parametrize("name", ["half \ud800", "nul \x00"])
def test_names_that_no_row_might_hold_are_no_names(name: str, tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "label": i % 2} for i in range(20)]
    hostile = {"label": CLASS | {"names": [name, "pos"]}}
    report = build(tmp_path, with_features(rows, hostile), "x.parquet")
    assert (report.status, report.labels) == ("ready", ["0", "1"])


def test_columns_of_other_types_are_left_out_and_told(tmp_path: Path) -> None:
    own = TASKS["text-classification"]
    more = {"made": date(2026, 1, 2), "raw": b"\x00", "price": Decimal("1.5")}
    report = build(tmp_path, parquet([row | more for row in own]), "x.parquet")
    assert report.status == "ready"
    (warning,) = report.warnings
    assert warning.code == "columns_left_out"
    assert all(f'"{name}"' in warning.message for name in more)
    alone = build(tmp_path, parquet([{"raw": b"\x00"}] * 5), "x.parquet")
    assert alone.status == "invalid"


def test_faults_of_rows_are_told_with_their_number(tmp_path: Path) -> None:
    rows = [
        *TASKS["text-classification"],
        {"text": None, "label": "a"},
        {"text": " ", "label": "b"},
    ]
    report = build(tmp_path, parquet(rows), "x.parquet")
    assert [(p.line, p.code, p.column) for p in report.problems] == [
        (41, "null_value", "text"),
        (42, "empty_text", "text"),
    ]
    values = [{"text": f"row {i}", "value": float("nan") if i == 3 else i / 2} for i in range(20)]
    report = build(tmp_path, parquet(values), "x.parquet", task="regression")
    assert [(p.line, p.code) for p in report.problems] == [(4, "not_a_number")]
    nul = [{"text": f"row {i}" + "\x00" * (i == 5), "label": "ab"[i % 2]} for i in range(20)]
    assert codes(build(tmp_path, parquet(nul), "x.parquet")) == ["nul_character"]


def test_a_text_that_is_not_utf8_costs_its_row_alone(tmp_path: Path) -> None:
    texts = [f"row {i}".encode() for i in range(20)]
    texts[7] = b"caf\xe9"
    column = pa.Array.from_buffers(
        pa.string(), 20, pa.array(texts, pa.binary()).buffers()
    )  # no check of its bytes
    table = pa.table({"text": column, "label": ["ab"[i % 2] for i in range(20)]})
    report = build(tmp_path, parquet(table), "x.parquet")
    assert [(p.line, p.code) for p in report.problems] == [(8, "not_utf8")]
    assert report.rows_read == 20


def test_two_columns_of_one_name_and_too_many_are_refused(tmp_path: Path) -> None:
    twice = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    assert codes(build(tmp_path, parquet(twice), "x.parquet")) == ["duplicate_column"]
    wide = pa.table({f"c{i}": ["a"] for i in range(1_001)})
    assert codes(build(tmp_path, parquet(wide), "x.parquet")) == ["too_many_keys"]


def test_a_file_without_rows_says_so(tmp_path: Path) -> None:
    empty = parquet(
        pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())})
    )
    assert codes(build(tmp_path, empty, "x.parquet")) == ["no_rows"]


def test_limits_hold(tmp_path: Path) -> None:
    rows = TASKS["text-classification"]
    few = build(tmp_path, parquet(rows), "x.parquet", limits=Limits(max_rows=10))
    assert codes(few) == ["too_many_rows"]
    long = [*rows, {"text": "x" * 5_000, "label": "a"}]
    report = build(tmp_path, parquet(long), "x.parquet", limits=Limits(max_line_bytes=2_048))
    assert [(p.line, p.code) for p in report.problems] == [(41, "line_too_long")]


def test_one_text_in_many_rows_is_no_bomb(tmp_path: Path) -> None:
    """Ten thousand rows of a megabyte each, stored once: 10 GB unpacked."""
    text = pa.array(["x" * 2**20])
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000, pa.int32()), text)
    table = pa.table({"text": column, "label": ["ab"[i % 2] for i in range(10_000)]})
    data = parquet(table, store_schema=False, dictionary_pagesize_limit=2**24)
    assert len(data) < 2**20
    limits = Limits(max_unpacked_bytes=64 * 2**20)
    before = pa.total_allocated_bytes()
    report = build(tmp_path, data, "x.parquet", limits=limits)
    assert codes(report) == ["unpacked_too_large"]
    assert pa.total_allocated_bytes() - before < 16 * 2**20


def test_a_damaged_file_gets_an_answer_whatever_was_damaged(tmp_path: Path) -> None:
    data = parquet(TASKS["question-answering"])
    generator = random.Random(0)
    answers = set()
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(generator.choice([1, 3, 20])):
            damaged[generator.randrange(4, len(data) - 8)] = generator.randrange(256)
        report = build(tmp_path, bytes(damaged), "x.parquet", task="question-answering")
        json.dumps(report.model_dump(mode="json"), allow_nan=False)
        answers.update(codes(report) or ["ready"])
    assert "parquet_damaged" in answers
    cut = build(tmp_path, data[:-40], "x.parquet")
    assert codes(cut) == ["parquet_truncated"]
