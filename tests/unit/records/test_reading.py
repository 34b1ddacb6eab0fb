"""Formats, encodings and columns: what the faulty uploads do not cover."""

import gzip
import json
from pathlib import Path

import pytest

from peft_engine.records import (
    BuildCancelled,
    DatasetReport,
    Limits,
    ProblemList,
    SourceFile,
    SplitSpec,
    build_dataset,
    read_canonical,
    read_upload,
)

ROWS = [{"text": f"text number {i}", "label": "even" if i % 2 == 0 else "odd"} for i in range(40)]


def jsonl(rows: list[dict[str, object]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def build(tmp_path: Path, data: bytes, name: str = "x.jsonl", **wishes: object) -> DatasetReport:
    path = put(tmp_path / "upload.bin", data)
    return build_dataset(
        {"all": SourceFile(path, name)},
        out_dir=tmp_path / "out",
        **wishes,  # type: ignore[arg-type]
    )


def codes(report: DatasetReport) -> list[str]:
    return [problem.code for problem in report.problems]


def all_rows(tmp_path: Path) -> list[dict[str, object]]:
    names = ("train", "validation", "test")
    return [row for name in names for row in read_canonical(tmp_path / "out" / f"{name}.jsonl")]


@pytest.mark.parametrize(
    "name",
    [
        "../../x.jsonl", "a b.jsonl", "ünïcode 😀.jsonl", ".jsonl", "x.JSONL", "x.jsonl.exe",
        "con.jsonl", "x" * 300 + ".jsonl", "", "data", "x.jsonl\x00.csv", "x.ndjson",
    ],
)  # fmt: skip
def test_a_file_name_decides_nothing_but_the_format(tmp_path: Path, name: str) -> None:
    report = build(tmp_path, jsonl(ROWS), name)
    assert report.status == "ready"
    assert report.rows == 40
    assert {path.name for path in tmp_path.iterdir()} == {"upload.bin", "out"}


def test_no_file_name_at_all(tmp_path: Path) -> None:
    assert build(tmp_path, jsonl(ROWS), None).status == "ready"  # type: ignore[arg-type]


def test_bytes_and_digest_are_those_of_the_upload(tmp_path: Path) -> None:
    import hashlib

    data = gzip.compress(jsonl(ROWS))
    report = build(tmp_path, data, "x.jsonl.gz")
    assert report.bytes == len(data)
    assert report.sha256 == hashlib.sha256(data).hexdigest()
    assert report.compression == "gzip"
    for name, split in report.splits.items():
        written = (tmp_path / "out" / f"{name}.jsonl").read_bytes()
        assert split.bytes == len(written)
        assert split.sha256 == hashlib.sha256(written).hexdigest()
        assert split.rows == written.count(b"\n")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_marked_encodings_are_read(tmp_path: Path, encoding: str) -> None:
    rows = [{"text": f"naïve 😀 {i}", "label": "ab"[i % 2]} for i in range(10)]
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(encoding)
    assert build(tmp_path, data).rows == 10
    assert {row["text"] for row in all_rows(tmp_path)} == {row["text"] for row in rows}


def test_utf16_without_a_mark_is_named(tmp_path: Path) -> None:
    assert codes(build(tmp_path, jsonl(ROWS).decode().encode("utf-16-le"))) == [
        "utf16_without_mark"
    ]


def test_broken_utf16(tmp_path: Path) -> None:
    data = b"\xff\xfe" + jsonl(ROWS).decode().encode("utf-16-le") + b"\x00\xd8"
    assert codes(build(tmp_path, data)) == ["not_utf16"]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (gzip.compress(b"x" * 5_000, mtime=0)[:-20], "gzip_damaged"),
        (gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), "gzip_nested"),
        (b"\x1f\x8b\x08garbage that is no gzip at all", "gzip_damaged"),
        (b"BZh91AY&SY...", "archive_unsupported"),
        (b"\x28\xb5\x2f\xfd....", "archive_unsupported"),
        (b"a" * 257 + b"ustar\x00" + b"0" * 300, "archive_unsupported"),
        (b"%PDF-1.7\n", "binary_file"),
        (b"<?xml version='1.0'?><a/>", "html_file"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "excel_workbook"),
        (b"PAR1", "parquet_truncated"),
        (b"\xef\xbb\xbf", "empty_file"),
        (gzip.compress(b"", mtime=0), "empty_file"),
    ],
    # Named by the code: all processes that share the tests must find the same names.
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_data(tmp_path: Path, data: bytes, code: str) -> None:
    report = build(tmp_path, data)
    assert codes(report) == [code]
    assert report.rows == 0


def test_a_gzip_bomb_is_stopped_early(tmp_path: Path) -> None:
    line = b'{"text":"' + b"a" * 100_000 + b'","label":"x"}\n'
    data = gzip.compress(line * 100)
    limits = Limits(unpack_ratio_floor_bytes=100_000, max_unpack_ratio=20)
    report = build(tmp_path, data, limits=limits)
    assert codes(report) == ["unpacked_too_large"]
    assert report.rows_read < 20


def test_the_unpacked_limit_holds(tmp_path: Path) -> None:
    report = build(tmp_path, gzip.compress(jsonl(ROWS)), limits=Limits(max_unpacked_bytes=500))
    assert "unpacked_too_large" in codes(report)


def test_a_long_line_is_one_problem_and_the_rest_is_read(tmp_path: Path) -> None:
    long = [{"text": "y" * 5_000, "label": "odd"}]
    report = build(tmp_path, jsonl([*ROWS, *long, *ROWS]), limits=Limits(max_line_bytes=1_024))
    assert [(p.line, p.code) for p in report.problems] == [(41, "line_too_long")]
    assert report.rows == 80
    assert report.rows_read == 81


def test_too_many_rows(tmp_path: Path) -> None:
    report = build(tmp_path, jsonl(ROWS), limits=Limits(max_rows=10))
    assert [(p.line, p.code) for p in report.problems] == [(11, "too_many_rows")]


def test_all_problems_are_counted_and_a_thousand_listed(tmp_path: Path) -> None:
    report = build(tmp_path, jsonl(ROWS) + b'{"text": 1}\n' * 2_000)
    assert report.problems_total == 4_000  # no text, and no label, in each of 2,000 rows
    assert len(report.problems) == 1_000
    assert report.rows == 40


def test_every_problem_of_a_row_is_told(tmp_path: Path) -> None:
    bad = [{"text": " ", "text_pair": 7, "label": None}]
    good = [{**row, "text_pair": "b"} for row in ROWS]
    report = build(tmp_path, jsonl(good + bad))
    assert [(p.line, p.column, p.code) for p in report.problems] == [
        (41, "text", "empty_text"),
        (41, "text_pair", "wrong_type"),
        (41, "label", "null_value"),
    ]


# -- JSON arrays ----------------------------------------------------------------------------------


def test_an_array_keeps_physical_lines(tmp_path: Path) -> None:
    rows = [json.dumps(row, indent=1) for row in ROWS]
    rows[3] = '{\n"text": "x",\n"label": null}'
    report = build(tmp_path, ("[\n" + ",\n".join(rows) + "\n]").encode(), "x.json")
    assert [(p.line, p.code) for p in report.problems] == [(14, "null_value")]
    assert report.rows == 39
    assert not report.warnings


def test_an_array_with_brackets_and_quotes_in_texts(tmp_path: Path) -> None:
    rows = [{"text": f'}}],[{{"\\ {i} "', "label": "ab"[i % 2]} for i in range(10)]
    assert build(tmp_path, json.dumps(rows).encode(), "x.json").rows == 10
    assert {row["text"] for row in all_rows(tmp_path)} == {row["text"] for row in rows}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (json.dumps(ROWS)[:-40].encode(), "array_damaged"),
        (json.dumps(ROWS).encode() + b"[]", "array_damaged"),
        (json.dumps(ROWS).replace("}, {", "} {", 1).encode(), "several_objects"),
        (b"[1, 2]", "not_an_object"),
        (b"[]", "no_rows"),
        (b"[" * 100_000, "array_damaged"),
        (b'["' + b"\\" * 99_999, "array_damaged"),
        (b"[" + b"[" * 500 + b"]" * 500 + b"]", "too_deep"),
    ],
)
def test_broken_arrays(tmp_path: Path, data: bytes, code: str) -> None:
    assert code in codes(build(tmp_path, data, "x.json"))


def test_an_array_element_over_the_limit(tmp_path: Path) -> None:
    rows = [{"text": "z" * 2_000_000, "label": "a"}]
    report = build(
        tmp_path, json.dumps(rows).encode(), "x.json", limits=Limits(max_line_bytes=10_000)
    )
    assert codes(report) == ["array_damaged"]


# -- tables ---------------------------------------------------------------------------------------


def table(rows: list[str], head: str = "text,label") -> bytes:
    return "\n".join([head, *rows]).encode()


GOOD = [f"row {i},{'ab'[i % 2]}" for i in range(10)]


def test_line_numbers_after_quoted_line_ends(tmp_path: Path) -> None:
    report = build(tmp_path, table(['"one\n\ntwo",a', "three,b,c", *GOOD]), "x.csv")
    assert [(p.line, p.code) for p in report.problems] == [(5, "unequal_columns")]


def test_a_quote_never_joins_rows_in_silence(tmp_path: Path) -> None:
    report = build(tmp_path, table(['"open,a', '"next",b', *GOOD]), "x.csv")
    assert [(p.line, p.code) for p in report.problems] == [(2, "stray_quote")]


def test_doubled_quotes_and_crlf_in_cells(tmp_path: Path) -> None:
    data = b'text,label\r\n"say ""hi""",a\r\n"two\r\nlines",b\r\n' + b"plain,a\r\nmore,b\r\n"
    assert build(tmp_path, data, "x.csv").status == "ready"
    assert {row["text"] for row in all_rows(tmp_path)} == {
        'say "hi"', "two\r\nlines", "plain", "more",
    }  # fmt: skip


def test_numbers_and_lists_in_tables(tmp_path: Path) -> None:
    rows = [f"row {i},{i}.5" for i in range(8)]
    assert build(tmp_path, table(rows, "text,score"), "x.csv").task == "regression"
    assert {row["value"] for row in all_rows(tmp_path)} == {i + 0.5 for i in range(8)}
    cells = [f"""question {i},"[""yes"", ""no""]",{i % 2}""" for i in range(8)]
    report = build(tmp_path, table(cells, "question,choices,answer"), "x.csv")
    assert report.task == "multiple-choice"
    assert report.status == "ready"


def test_a_broken_list_in_a_table(tmp_path: Path) -> None:
    cells = [f"""question {i},"[""yes"", ""no""]",{i % 2}""" for i in range(8)]
    cells[2] = 'question,"[""yes""",0'
    report = build(tmp_path, table(cells, "question,choices,answer"), "x.csv")
    assert [(p.line, p.column) for p in report.problems] == [(4, "choices")]


def test_tsv(tmp_path: Path) -> None:
    rows = [f"row, {i}\t{'ab'[i % 2]}" for i in range(10)]
    report = build(tmp_path, table(rows, "text\tlabel"), "x.tsv")
    assert report.format == "tsv"
    assert not report.warnings


def test_a_value_without_a_column_name(tmp_path: Path) -> None:
    report = build(tmp_path, table(["a,b,c", "d,e,"], "text,label,"), "x.csv")
    assert [(p.line, p.code) for p in report.problems][:1] == [(2, "unnamed_column")]


# -- columns, task, mapping -----------------------------------------------------------------------


def test_mapping(tmp_path: Path) -> None:
    rows = [{"sentence": row["text"], "target": row["label"], "text": "noise"} for row in ROWS]
    mapping = {"text": "sentence", "label": "target"}
    report = build(tmp_path, jsonl(rows), mapping=mapping)
    assert report.status == "ready"
    assert report.mapping == mapping
    assert {row["text"] for row in all_rows(tmp_path)} == {row["text"] for row in ROWS}


def test_a_problem_names_the_mapped_column(tmp_path: Path) -> None:
    rows = [{"sentence": row["text"], "label": row["label"]} for row in ROWS]
    rows[2]["sentence"] = ""
    report = build(tmp_path, jsonl(rows), mapping={"text": "sentence"})
    assert [(p.line, p.column) for p in report.problems] == [(3, "sentence")]


def test_a_mapping_to_nothing(tmp_path: Path) -> None:
    report = build(tmp_path, jsonl(ROWS), mapping={"text": "body"})
    assert codes(report) == ["mapping_wrong"]


def test_unknown_task_and_format(tmp_path: Path) -> None:
    assert codes(build(tmp_path, jsonl(ROWS), task="telepathy")) == ["task_unknown"]
    assert codes(build(tmp_path, jsonl(ROWS), format="orc")) == ["format_unknown"]
    assert codes(build(tmp_path, b'{"a": 1}\n' * 9)) == ["task_unknown"]


@pytest.mark.parametrize(
    ("row", "task"),
    [
        ({"text": "a", "label": "b"}, "text-classification"),
        ({"text": "a", "label": 1}, "text-classification"),
        ({"text": "a", "label": 1.5}, "regression"),
        ({"text": "a", "text_pair": "b", "value": 2}, "regression"),
        ({"text": "a", "labels": ["b"]}, "text-classification"),
        ({"tokens": ["a"], "tags": ["B-X"]}, "token-classification"),
        ({"text": "a", "entities": [{"start": 0, "end": 1, "label": "X"}]}, "token-classification"),
        ({"text": "a b", "head": {"start": 0, "end": 1}, "tail": {"start": 2, "end": 3},
          "label": "r"}, "relation-extraction"),
        ({"question": "a", "context": "b", "answers": []}, "question-answering"),
        ({"question": "a", "choices": ["b", "c"], "answer": 0}, "multiple-choice"),
        ({"prompt": "a", "completion": "b"}, "text-generation"),
        ({"instruction": "a", "input": "", "output": "b"}, "text-generation"),
        ({"messages": [{"role": "user", "content": "a"}]}, "text-generation"),
        ({"text": "a"}, "text-generation"),
    ],
)  # fmt: skip
def test_the_task_is_told_from_the_rows(tmp_path: Path, row: dict[str, object], task: str) -> None:
    assert build(tmp_path, jsonl([row] * 10)).task == task


def test_references_are_kept(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "completion": "c", "references": ["c", "d"]} for i in range(9)]
    build(tmp_path, jsonl(rows))
    assert all(row["references"] == ["c", "d"] for row in all_rows(tmp_path))


def test_a_file_said_to_be_parquet_that_is_none(tmp_path: Path) -> None:
    report = build(tmp_path, jsonl(ROWS), format="parquet")
    assert report.status == "ready"
    assert [warning.code for warning in report.warnings] == ["read_as"]


def test_labels_without_end_stop_the_reading(tmp_path: Path) -> None:
    rows = [{"text": row["text"], "label": row["text"]} for row in ROWS]
    report = build(tmp_path, jsonl(rows), limits=Limits(max_labels=10))
    assert [(p.line, p.code) for p in report.problems] == [(11, "too_many_labels")]


def test_a_key_of_half_a_surrogate_pair_does_not_break_the_report(tmp_path: Path) -> None:
    report = build(tmp_path, jsonl(ROWS) + b'{"\\ud800": 1, "\\ud800": 2}\n')
    assert [(p.code, p.column) for p in report.problems] == [("duplicate_key", "\\ud800")]
    assert report.model_dump_json()


def test_names_of_keys_are_cut_in_the_report(tmp_path: Path) -> None:
    rows = [{**row, "k" * 100_000: 1} for row in ROWS]
    report = build(tmp_path, jsonl(rows))
    assert report.status == "ready"
    assert len(report.model_dump_json()) < 10_000


def test_a_mapping_may_name_a_far_column(tmp_path: Path) -> None:
    rows = [{**{f"k{i}": 0 for i in range(90)}, "body": row["text"], "label": row["label"]}
            for row in ROWS]  # fmt: skip
    assert build(tmp_path, jsonl(rows), mapping={"text": "body"}).status == "ready"


# -- splits ---------------------------------------------------------------------------------------


def test_a_split_column(tmp_path: Path) -> None:
    names = ("train", "train", "dev", "test")
    rows = [{**row, "split": names[i % 4]} for i, row in enumerate(ROWS)]
    report = build(tmp_path, jsonl(rows))
    assert {name: split.rows for name, split in report.splits.items()} == {
        "train": 20, "validation": 10, "test": 10,
    }  # fmt: skip
    assert all("split" not in row for row in all_rows(tmp_path))


def test_a_named_split_column_with_a_wrong_value(tmp_path: Path) -> None:
    rows = [{**row, "fold": "train" if i else "holdout"} for i, row in enumerate(ROWS)]
    report = build(tmp_path, jsonl(rows), split=SplitSpec(column="fold"))
    assert [(p.line, p.code, p.column) for p in report.problems] == [(1, "split_value", "fold")]


def test_a_column_called_split_that_is_none(tmp_path: Path) -> None:
    rows = [{**row, "split": f"group {i}"} for i, row in enumerate(ROWS)]
    report = build(tmp_path, jsonl(rows))
    assert report.status == "ready"
    assert [note.code for note in report.notes] == ["fields_left_out"]


def test_missing_splits_are_cut_out_of_the_main_file(tmp_path: Path) -> None:
    files = {
        "train": put(tmp_path / "a.jsonl", jsonl(ROWS)),
        "test": put(
            tmp_path / "b.jsonl", jsonl([{"text": f"t{i}", "label": "odd"} for i in range(9)])
        ),
    }
    report = build_dataset(files, out_dir=tmp_path / "out")
    rows = {name: split.rows for name, split in report.splits.items()}
    assert rows["test"] == 9
    assert rows["train"] + rows["validation"] == 40
    assert rows["validation"] == 4


def test_a_problem_names_its_file(tmp_path: Path) -> None:
    files = {
        "train": put(tmp_path / "a.jsonl", jsonl(ROWS)),
        "validation": put(tmp_path / "b.jsonl", jsonl([{"text": "t"}])),
    }
    report = build_dataset(files, out_dir=tmp_path / "out")
    assert [(p.file, p.line, p.code) for p in report.problems] == [
        ("validation", 1, "missing_field")
    ]


def test_files_without_a_main_one_are_a_fault_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'all' or 'train'"):
        build_dataset({"test": tmp_path / "x"}, out_dir=tmp_path)


def test_a_named_split_column_that_is_not_there(tmp_path: Path) -> None:
    report = build(tmp_path, jsonl(ROWS), split=SplitSpec(column="fold"))
    assert [(p.code, p.column) for p in report.problems] == [("split_value", "fold")]


def test_a_failed_build_takes_older_splits_away(tmp_path: Path) -> None:
    assert build(tmp_path, jsonl(ROWS)).status == "ready"
    assert build(tmp_path, jsonl(ROWS[:1])).status == "invalid"
    assert list((tmp_path / "out").iterdir()) == []


# -- the rest -------------------------------------------------------------------------------------


def test_cancel_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BuildCancelled):
        build(tmp_path, jsonl(ROWS), cancelled=lambda: True)
    assert list((tmp_path / "out").iterdir()) == []


def test_read_upload_streams_rows_with_lines(tmp_path: Path) -> None:
    problems = ProblemList()
    path = put(tmp_path / "x.jsonl", b"\n" + jsonl(ROWS[:2]) + b'{"text": 5}\n')
    rows = list(read_upload(path, problems=problems, task="text-classification"))
    assert rows == [(2, ROWS[0]), (3, ROWS[1])]
    assert [(p.line, p.code) for p in problems.listed] == [(4, "wrong_type"), (4, "missing_field")]


def test_an_entity_type_that_train_lacks_is_a_warning(tmp_path: Path) -> None:
    train = [{"tokens": ["a", str(i)], "tags": ["B-X", "O"]} for i in range(9)]
    test = [{"tokens": ["b"], "tags": ["B-Y"]}]
    files = {
        "train": put(tmp_path / "a.jsonl", jsonl(train)),
        "test": put(tmp_path / "b.jsonl", jsonl(test)),
    }
    report = build_dataset(files, out_dir=tmp_path / "out")
    assert report.status == "ready"
    assert [(w.code, w.file, w.lines) for w in report.warnings] == [("unseen_label", "test", [1])]


def test_a_cut_off_split_file_is_not_left_behind(tmp_path: Path) -> None:
    calls = iter([False, True, True, True])
    with pytest.raises(BuildCancelled):
        build(tmp_path, jsonl(ROWS), cancelled=lambda: next(calls))
    assert list((tmp_path / "out").iterdir()) == []


def test_rows_that_no_label_fits_are_taken_with_a_note(tmp_path: Path) -> None:
    known = [["late"], ["late", "lost"], [], ["lost"]]
    rows = [{"text": f"text number {i}", "labels": known[i % 4]} for i in range(40)]
    report = build(tmp_path, jsonl(rows))
    assert report.status == "ready"
    assert [(note.code, note.count) for note in report.notes] == [("labels_empty", 10)]
    assert sum(row["labels"] == [] for row in all_rows(tmp_path)) == 10


def test_a_set_without_any_label_is_refused(tmp_path: Path) -> None:
    rows = [{"text": f"text number {i}", "labels": []} for i in range(40)]
    report = build(tmp_path, jsonl(rows))
    assert codes(report) == ["single_class"]
    assert "no row has a label" in report.problems[0].message
