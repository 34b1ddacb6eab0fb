"""Every faulty upload of ``bad/`` is answered as its index says: the main acceptance test."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from peft_engine.records import DatasetReport, build_dataset, read_canonical
from peft_engine.records.problems import CODES

BAD = Path(__file__).parent / "bad"
INDEX = [json.loads(line) for line in (BAD / "index.jsonl").read_bytes().split(b"\n") if line]

TASK_OF = {
    "any": None,
    "text classification": "text-classification",
    "sentence-pair classification": "text-classification",
    "named entity recognition": "token-classification",
    "relation extraction": "relation-extraction",
    "extractive QA": "question-answering",
    "generation (prompt/completion)": "text-generation",
    "dialogue (messages)": "text-generation",
    "multiple choice": "multiple-choice",
    "regression": "regression",
}


class Answer(NamedTuple):
    """Our answer to a file: exactly these codes, and words that the messages must hold."""

    codes: str
    words: tuple[str, ...] = ()


# Problem codes for a refused file; warning codes (or "note:" codes) for one that is taken; "" for
# one that is taken without a word.
ANSWERS = {
    "latin1.jsonl": Answer("not_utf8", ("0xe9", "save the file as UTF-8")),
    "cp1252_smart_quotes.csv": Answer("not_utf8", ("0x92", "UTF-8")),
    "utf8_bom.jsonl": Answer(""),
    "utf8_bom.csv": Answer("note:loose_quotes"),
    "utf16le.jsonl": Answer("converted_encoding", ("UTF-16",)),
    "crlf.jsonl": Answer(""),
    "crlf.csv": Answer("note:loose_quotes"),
    "cr_only.csv": Answer("converted_line_ends note:loose_quotes", ("bare CR",)),
    "mixed_newlines.jsonl": Answer(""),
    "null_bytes.jsonl": Answer("control_character", ("raw control character",)),
    "null_escape.jsonl": Answer("nul_character", ("U+0000",)),
    "lone_surrogate.jsonl": Answer("lone_surrogate", ("\\ud83d",)),
    "emoji_rtl.jsonl": Answer(""),
    "unicode_line_separators.jsonl": Answer(""),
    "empty.jsonl": Answer("empty_file", ("empty",)),
    "whitespace_only.jsonl": Answer("no_rows", ("no rows",)),
    "header_only.csv": Answer("no_rows", ("no rows",)),
    "one_row.jsonl": Answer("too_few_rows", ("at least 4",)),
    "truncated_last_line.jsonl": Answer("json_cut_off", ("not complete JSON", "cut off")),
    "no_final_newline.jsonl": Answer(""),
    "blank_lines.jsonl": Answer(""),
    "error_after_blank_lines.jsonl": Answer("missing_field", ('"label"',)),
    "csv_named.jsonl": Answer("read_as", ("CSV",)),
    "json_array.jsonl": Answer("read_as", ("JSON array",)),
    "json_array_one_line.jsonl": Answer("read_as", ("JSON array",)),
    "pretty_printed.jsonl": Answer("object_over_lines", ("one object a line",)),
    "concatenated.jsonl": Answer("several_objects", ("more than one object on one line",)),
    "python_repr.jsonl": Answer("single_quotes", ("double quotes",)),
    "trailing_commas.jsonl": Answer("not_json", ("comma",)),
    "top_level_values.jsonl": Answer("not_an_object", ("must be a JSON object",)),
    "duplicate_keys.jsonl": Answer("duplicate_key", ('"label"',)),
    "deep_nesting.jsonl": Answer("too_deep", ("nested",)),
    "big_integer.jsonl": Answer("integer_too_large", ("5000 digits",)),
    "long_text.jsonl": Answer("row_too_long", ("256 tokens", "cut", "1 in all")),
    "long_label.jsonl": Answer("label_too_long", ("columns swapped",)),
    "swapped_columns.jsonl": Answer("labels_like_rows", ("as many labels as rows", "swapped")),
    # Its own answer says "half of them duplicates", and so do we: see EXTRA_WORDS.
    "hostile_strings.jsonl": Answer("duplicate_rows", ("12 of 24",)),
    "hostile_labels.jsonl": Answer(""),
    "git_lfs_pointer.jsonl": Answer("lfs_pointer", ("Git LFS pointer",)),
    "html_error_page.jsonl": Answer("html_file", ("HTML",)),
    "gzip_named.jsonl": Answer(""),
    "zip_named.jsonl": Answer("zip_archive", ("zip archive",)),
    "missing_field.jsonl": Answer("missing_field", ('"label"',)),
    "mixed_schema.jsonl": Answer("mixed_rows", ("two kinds", '"prompt"')),
    "wrong_keys.jsonl": Answer(
        "columns_missing", ('"sentence"', '"target"', '{"text": "sentence", "label": "target"}')
    ),
    "wrong_task.jsonl": Answer("wrong_task", ('"prompt"', "text-generation", "label")),
    "extra_fields.jsonl": Answer("note:fields_left_out", ('"id"', '"meta"')),
    "empty_labels.jsonl": Answer("empty_label"),
    "empty_text.jsonl": Answer("empty_text"),
    "null_label.jsonl": Answer("null_value", ("null",)),
    "label_integers.jsonl": Answer("label_not_text", ("integer",)),
    "label_mixed_types.jsonl": Answer("label_types_mixed", ("integer", "boolean", "text")),
    "label_list.jsonl": Answer("label_is_list", ("one label a row", '"labels"')),
    "label_case_space.jsonl": Answer("label_twins", ("7 labels look like 2",)),
    "single_class.jsonl": Answer("single_class", ("two at least",)),
    "rare_class.jsonl": Answer("rare_class", ('"neutral" (in train)',)),
    "imbalanced.jsonl": Answer("imbalance duplicate_rows", ("195", "macro-F1", "180 of 198")),
    "duplicates.jsonl": Answer("duplicate_rows", ("10 of 30",)),
    "conflicting_labels.jsonl": Answer("conflicting_labels", ("5 texts",)),
    "leak/train.jsonl": Answer(
        "duplicate_rows leakage note:near_duplicate_rows", ("6 exact and 4 near",)
    ),
    "leak/test.jsonl": Answer(
        "duplicate_rows leakage note:near_duplicate_rows", ("6 exact and 4 near",)
    ),
    "unseen_test_label/train.jsonl": Answer(""),
    "unseen_test_label/test.jsonl": Answer("unseen_label", ('"neutral"', '"Positive"')),
    "ner_length_mismatch.jsonl": Answer("length_mismatch", ("27 tokens and 26 tags",)),
    "ner_invalid_bio.jsonl": Answer("tags_repaired", ("B-", "2 in all")),
    "ner_unknown_tags.jsonl": Answer("unknown_tag", ('"B_LOC"', '"L-LOC"', '"X-ORG"', "B-TYPE")),
    "ner_io_tags.jsonl": Answer("iob1_tags", ("IOB1",)),
    "ner_tokens_string.jsonl": Answer("wrong_type", ("must be a list",)),
    "ner_empty_row.jsonl": Answer("empty_token", ("empty list",)),
    "ner_zero_width_tokens.jsonl": Answer("empty_token", ("\\u200b", "visible")),
    "ner_all_o.jsonl": Answer("no_entities", ("no entity to learn",)),
    "ner_long_row.jsonl": Answer("row_too_long", ("256 tokens", "1 in all")),
    "relation_bad_spans.jsonl": Answer("bad_span null_value span_text_differs"),
    "relation_utf16_offsets.jsonl": Answer("span_text_differs", ("code points", "UTF-16")),
    "relation_same_span.jsonl": Answer("same_span"),
    "qa_answer_not_in_context.jsonl": Answer("answer_not_in_context"),
    "qa_no_answers.jsonl": Answer("note:unanswerable", ("unanswerable",)),
    "qa_hf_format.jsonl": Answer("note:converted_form note:fields_left_out"),
    "qa_squad_nested.json": Answer("columns_missing", ("SQuAD", "question, context, answers")),
    "seq2seq_empty.jsonl": Answer("empty_text", ('"completion"', '"prompt"')),
    "seq2seq_prompt_too_long.jsonl": Answer("row_too_long", ("of a completion the end", "line 20")),
    "seq2seq_openai_completions.jsonl": Answer(""),
    "seq2seq_alpaca.jsonl": Answer("note:converted_form", ("Alpaca",)),
    "dialogue_sharegpt.jsonl": Answer("note:converted_form", ("ShareGPT",)),
    "dialogue_bad_roles.jsonl": Answer(
        "bad_role bad_turns empty_text missing_field null_value wrong_type"
    ),
    "dialogue_control_tokens.jsonl": Answer("control_tokens", ("plain text",)),
    "choice_bad_answers.jsonl": Answer("bad_answer too_few_choices"),
    "choice_duplicate.jsonl": Answer("duplicate_choice"),
    "choice_one_answer.jsonl": Answer("answers_always_first", ("every answer is index 0",)),
    "nan_label.jsonl": Answer("not_a_number", ("NaN",)),
    "infinite_label.jsonl": Answer("not_a_number", ("Infinity", "1e999")),
    "number_as_text.jsonl": Answer("label_not_number", ("decimal point",)),
    "constant_label.jsonl": Answer("constant_value", ("same in every row",)),
    "class_labels_for_regression.jsonl": Answer(
        "label_not_number", ("text-classification", 'your "label"')
    ),
    "pair_missing_second.jsonl": Answer("missing_field null_value", ('"text_pair"',)),
    "tsv_named.csv": Answer("delimiter_found", ("tabs",)),
    "semicolon.csv": Answer("delimiter_found", ("semicolons",)),
    "quoted_newlines.csv": Answer(""),
    "tabs_in_text.csv": Answer(""),
    "unquoted_commas.csv": Answer("unequal_columns", ("4 columns; the header has 2",)),
    "unbalanced_quote.csv": Answer("unbalanced_quote", ("line 11", "never closed")),
    "no_header.csv": Answer("columns_missing", ("nothing more than four or five", "header")),
    "header_case_space.csv": Answer("header_cleaned", ('" Text " is "text"',)),
    "duplicate_header.csv": Answer("duplicate_column", ('"text"',)),
    "na_labels.csv": Answer(""),
    "leading_zeros.csv": Answer("note:label_twins", ('"TRUE" and "True"',)),
    "trailing_empty_columns.csv": Answer("empty_columns empty_rows", ("22, 23",)),
    "xlsx_named.csv": Answer("excel_workbook", ("Excel workbook", "CSV")),
    "truncated.parquet": Answer("parquet_truncated", ("not a whole Parquet file",)),
    "head_only.parquet": Answer("parquet_damaged", ("not a readable Parquet file",)),
    "wrong_types.parquet": Answer(
        "null_value wrong_type", ('"text" must be a text; it is a list', '"label" is null')
    ),
    "jsonl_named.parquet": Answer("read_as", ("JSON Lines",)),
}

# The one file that the index wants read "without a word" and that carries a warning of ours: half
# of its rows are copies, which its own answer says too.
EXTRA_WORDS = {"hostile_strings.jsonl"}


def files_of(name: str) -> dict[str, Path]:
    """The upload that a file of the index belongs to."""
    if "/" not in name:
        return {"all": BAD / name}
    folder = BAD / Path(name).parent
    if name == "unseen_test_label/train.jsonl":
        return {"train": folder / "train.jsonl"}
    return {"train": folder / "train.jsonl", "test": folder / "test.jsonl"}


def built(name: str, out_dir: Path) -> DatasetReport:
    task = next(TASK_OF[entry["task"]] for entry in INDEX if entry["file"] == name)
    return build_dataset(files_of(name), out_dir=out_dir, task=task)


def rows_of(out_dir: Path) -> list[dict[str, object]]:
    names = ("train", "validation", "test")
    return [row for name in names for row in read_canonical(out_dir / f"{name}.jsonl")]


def codes_of(report: DatasetReport) -> str:
    if report.problems:
        return " ".join(sorted({p.code for p in report.problems}))
    return " ".join(
        [w.code for w in report.warnings] + sorted(f"note:{n.code}" for n in report.notes)
    )


def test_every_file_has_an_answer() -> None:
    assert {entry["file"] for entry in INDEX} == set(ANSWERS)
    assert len(INDEX) == 112


@pytest.mark.parametrize("entry", INDEX, ids=lambda entry: entry["file"])
def test_answers_as_the_index_says(entry: dict[str, object], tmp_path: Path) -> None:
    name = str(entry["file"])
    report = built(name, tmp_path)
    named = {p.line for p in report.problems}
    expect = entry["expect"]
    if expect == "reject":
        assert report.status == "invalid"
        assert set(entry["bad_lines"]) <= named  # type: ignore[arg-type]
    elif expect == "warn":
        assert report.status == "ready"
        assert report.warnings
    elif expect == "accept":
        assert report.status == "ready"
        assert not report.warnings or name in EXTRA_WORDS
    else:
        assert expect == "either"
        assert report.problems or report.status == "ready"
    if report.status == "ready":
        total = 50 if name.startswith("leak/") else entry["rows_ok"]
        assert report.rows == total == len(rows_of(tmp_path))
        assert sum(split.rows for split in report.splits.values()) == total


@pytest.mark.parametrize("name", ANSWERS)
def test_our_answer(name: str, tmp_path: Path) -> None:
    report = built(name, tmp_path)
    answer = ANSWERS[name]
    assert sorted(codes_of(report).split()) == sorted(answer.codes.split())
    found = report.problems or [*report.warnings, *report.notes]
    said = " ".join(f"{item.message} {item.fix}" for item in found)
    for word in answer.words:
        assert word in said
    assert set(answer.codes.replace("note:", "").split()) <= CODES.keys()


@pytest.mark.parametrize("name", ANSWERS)
def test_a_report_is_json_names_no_path_and_leaves_nothing_behind(
    name: str, tmp_path: Path
) -> None:
    report = built(name, tmp_path / "out")
    text = json.dumps(report.model_dump(mode="json"), allow_nan=False)
    assert str(tmp_path) not in text
    assert str(BAD) not in text
    assert "Traceback" not in text
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == (
        {"train.jsonl", "validation.jsonl", "test.jsonl"} if report.status == "ready" else set()
    )
    for problem in report.problems:
        assert problem.fix
        assert problem.message == problem.message.strip()
        assert all(c.isprintable() for c in problem.message + problem.fix)


# -- what must not happen ------------------------------------------------------------------------


def texts(rows: list[dict[str, object]]) -> list[object]:
    return [row["text"] for row in rows]


def labels(rows: list[dict[str, object]]) -> set[object]:
    return {row["label"] for row in rows}


def source_rows(name: str) -> list[dict[str, object]]:
    lines = (BAD / name).read_bytes().split(b"\n")
    return [json.loads(line) for line in lines if line.strip()]


def unchanged(name: str) -> Callable[[list[dict[str, object]]], bool]:
    def check(rows: list[dict[str, object]]) -> bool:
        def key(row: dict[str, object]) -> str:
            return json.dumps([row["text"], row["label"]])

        return sorted(map(key, rows)) == sorted(map(key, source_rows(name)))

    return check


MUST = {
    "utf8_bom.jsonl": lambda rows: all(set(row) == {"text", "label"} for row in rows),
    "utf8_bom.csv": lambda rows: all(list(row) == ["text", "label"] for row in rows),
    "crlf.jsonl": lambda rows: labels(rows) == {"positive", "negative"},
    "crlf.csv": lambda rows: labels(rows) == {"positive", "negative"},
    "cr_only.csv": lambda rows: labels(rows) == {"positive", "negative"},
    "utf16le.jsonl": lambda rows: labels(rows) == {"positive", "negative"},
    "emoji_rtl.jsonl": unchanged("emoji_rtl.jsonl"),
    "unicode_line_separators.jsonl": unchanged("unicode_line_separators.jsonl"),
    "hostile_strings.jsonl": unchanged("hostile_strings.jsonl"),
    "hostile_labels.jsonl": unchanged("hostile_labels.jsonl"),
    "label_case_space.jsonl": unchanged("label_case_space.jsonl"),
    "long_text.jsonl": unchanged("long_text.jsonl"),
    "na_labels.csv": lambda rows: labels(rows) == {"NA", "null", "None", "nan", "N/A", "yes"},
    "leading_zeros.csv": lambda rows: (
        labels(rows) == {"007", "07", "7", "1e3", "1000", "TRUE", "True"}
    ),
    "label_integers.jsonl": lambda rows: labels(rows) == {"0", "1"},
    "tabs_in_text.csv": lambda rows: any("\t" in str(text) for text in texts(rows)),
    "quoted_newlines.csv": lambda rows: any("\n" in str(text) for text in texts(rows)),
    "ner_io_tags.jsonl": lambda rows: any("B-ORG" in row["tags"] for row in rows),  # type: ignore[operator]
    "qa_no_answers.jsonl": lambda rows: sum(not row["answers"] for row in rows) == 1,
    "dialogue_control_tokens.jsonl": lambda rows: any(
        "<|im_end|>" in str(row["messages"]) for row in rows
    ),
}


@pytest.mark.parametrize("name", MUST)
def test_content_is_what_was_sent(name: str, tmp_path: Path) -> None:
    assert built(name, tmp_path).status == "ready"
    assert MUST[name](rows_of(tmp_path))


def test_copies_stay_on_one_side_of_our_own_split(tmp_path: Path) -> None:
    for name in ("duplicates.jsonl", "imbalanced.jsonl", "hostile_strings.jsonl"):
        report = built(name, tmp_path / name)
        assert report.leakage.pairs == {}
        sides = [
            {row["text"] for row in read_canonical(tmp_path / name / f"{split}.jsonl")}
            for split in ("train", "validation", "test")
        ]
        assert not sides[0] & sides[1]
        assert not sides[0] & sides[2]
        assert not sides[1] & sides[2]


def test_leakage_blocks_a_job_and_names_lines(tmp_path: Path) -> None:
    report = built("leak/test.jsonl", tmp_path)
    assert report.blocks_training
    assert report.leakage.exact_rows == 6
    assert report.leakage.near_rows == 4
    sent = {"train": source_rows("leak/train.jsonl"), "test": source_rows("leak/test.jsonl")}
    # Validation was cut out of train, so that its lines are lines of the train file.
    sent["validation"] = sent["train"]
    assert len(report.leakage.examples) == 10
    for example in report.leakage.examples[:5]:
        text = sent[example.split][example.line - 1]["text"]
        assert text == sent[example.other_split][example.other_line - 1]["text"]


def test_each_line_of_bad_roles_has_its_own_reason(tmp_path: Path) -> None:
    report = built("dialogue_bad_roles.jsonl", tmp_path)
    reasons: dict[int | None, set[str]] = {}
    for problem in report.problems:
        reasons.setdefault(problem.line, set()).add(problem.message)
    assert set(reasons) == set(range(4, 14))
    assert "starts with the assistant" in " ".join(reasons[4])
    assert "no assistant turn" in " ".join(reasons[6])
    assert "system turn" in " ".join(reasons[8])
