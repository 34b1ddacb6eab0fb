"""One row at a time: every task's record, and round trips of any valid text."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_engine.records import TASKS, build_dataset, check_record, read_canonical

VISIBLE = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1
).filter(lambda text: not text.isspace())
LABELS = VISIBLE.filter(lambda text: len(text) <= 512)


@st.composite
def relations(draw: st.DrawFn) -> dict[str, object]:
    text = draw(VISIBLE) + "ab"
    head = {"start": 0, "end": 1}
    return {"text": text, "head": head, "tail": {"start": 1, "end": 2}, "label": draw(LABELS)}


@st.composite
def answers(draw: st.DrawFn) -> dict[str, object]:
    before, text, after = draw(st.text("aé😀 ")), draw(VISIBLE), draw(st.text("b "))
    return {
        "question": draw(VISIBLE),
        "context": before + text + after,
        "answers": [{"text": text, "start": len(before)}],
    }


RECORDS = {
    "text-classification": st.fixed_dictionaries({"text": VISIBLE, "label": LABELS})
    | st.fixed_dictionaries({"text": VISIBLE, "text_pair": VISIBLE, "label": LABELS})
    | st.fixed_dictionaries(
        {"text": VISIBLE, "labels": st.lists(LABELS, min_size=1, max_size=4, unique=True)}
    ),
    "regression": st.fixed_dictionaries({"text": VISIBLE, "value": st.floats(-1e30, 1e30)}),
    "token-classification": st.lists(
        st.tuples(st.text("aé😀", min_size=1), st.sampled_from(["O", "B-X", "B-Y Z"])), min_size=1
    ).map(lambda pairs: {"tokens": [t for t, _ in pairs], "tags": [t for _, t in pairs]}),
    "relation-extraction": relations(),
    "question-answering": answers(),
    "multiple-choice": st.lists(VISIBLE, min_size=2, max_size=5).map(
        lambda choices: {"question": "q", "choices": choices, "answer": len(choices) - 1}
    ),
    "text-generation": st.fixed_dictionaries({"prompt": VISIBLE, "completion": VISIBLE})
    | st.fixed_dictionaries({"text": VISIBLE})
    | st.tuples(VISIBLE, VISIBLE).map(
        lambda turns: {
            "messages": [
                {"role": "user", "content": turns[0]},
                {"role": "assistant", "content": turns[1]},
            ]
        }
    ),
}


def test_all_tasks_are_tried() -> None:
    assert set(RECORDS) == set(TASKS)


@pytest.mark.parametrize("task", RECORDS)
def test_a_valid_record_comes_back_unchanged(task: str) -> None:
    @given(RECORDS[task])
    def round_trip(record: dict[str, object]) -> None:
        canonical, problems = check_record(task, record)
        assert problems == []
        assert canonical == record

    round_trip()


@given(st.lists(VISIBLE, min_size=4, max_size=12, unique=True))
@settings(max_examples=50, deadline=None)
def test_any_texts_survive_the_whole_way(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("way")
    path = folder / "x.jsonl"
    rows = [{"prompt": text, "completion": text[::-1]} for text in texts]
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    report = build_dataset({"all": path}, out_dir=folder / "out")
    assert report.status == "ready"
    names = ("train", "validation", "test")
    back = [row for name in names for row in read_canonical(folder / "out" / f"{name}.jsonl")]
    assert sorted(map(json.dumps, back)) == sorted(map(json.dumps, rows))


def test_a_row_that_no_label_fits_is_taken() -> None:
    row = {"text": "a", "labels": []}
    assert check_record("text-classification", row) == (row, [])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("task", RECORDS)
def test_any_json_is_taken_or_refused_with_a_reason(task: str, labelled: bool) -> None:
    names = sorted({name for form in TASKS[task].forms for name in form.known})
    extra = ["score", "conversations", "instruction", "output", "input"]

    @given(st.dictionaries(st.sampled_from([*names, *extra]), JSON))
    @settings(deadline=None)
    def refuse(row: dict[str, object]) -> None:
        record, problems = check_record(task, row, labelled=labelled)
        assert (record is None) == bool(problems)

    refuse()


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("text-classification", {"text": "a"}),
        ("text-classification", {"text": "a", "text_pair": "b"}),
        ("regression", {"text": "a"}),
        ("token-classification", {"tokens": ["a"]}),
        ("token-classification", {"text": "a"}),
        ("relation-extraction", {"text": "ab", "head": {"start": 0, "end": 1},
                                 "tail": {"start": 1, "end": 2}}),
        ("question-answering", {"question": "a", "context": "b"}),
        ("multiple-choice", {"question": "a", "choices": ["b", "c"]}),
        ("text-generation", {"prompt": "a"}),
        ("text-generation", {"messages": [{"role": "user", "content": "a"}]}),
    ],
)  # fmt: skip
def test_an_input_for_prediction_needs_no_target(task: str, row: dict[str, object]) -> None:
    assert check_record(task, row, labelled=False) == (row, [])
    record, problems = check_record(task, row)
    assert record is None
    assert problems


@pytest.mark.parametrize(
    ("task", "row", "codes"),
    [
        ("text-classification", {}, {"missing_field"}),
        ("text-classification", {"text": "a", "labels": ["x", "x"]}, {"label_repeated"}),
        ("text-classification", {"text": "a", "labels": "x"}, {"wrong_type"}),
        ("text-classification", {"text": ["a"], "label": {}}, {"wrong_type"}),
        ("regression", {"text": "a", "value": True}, {"label_not_number"}),
        ("regression", {"text": "a", "value": 1e31}, {"not_a_number"}),
        ("token-classification", {"tokens": ["a", 1], "tags": ["O", "O"]}, {"wrong_type"}),
        ("token-classification", {"tokens": ["a"], "tags": [3]}, {"wrong_type"}),
        ("token-classification", {"tokens": ["a"], "tags": ["B-"]}, {"unknown_tag"}),
        ("token-classification",
         {"text": "abc", "entities": [{"start": 0, "end": 2, "label": "X"},
                                      {"start": 1, "end": 3, "label": "Y"}]},
         {"overlapping_entities"}),
        ("token-classification",
         {"text": "abc", "entities": [{"start": 0, "end": 9, "label": "X"}]}, {"bad_span"}),
        ("token-classification", {"text": "abc", "entities": [{"start": 0, "end": 1}]},
         {"missing_field"}),
        ("question-answering",
         {"question": "q", "context": "c", "answers": [{"text": "c", "start": True}]},
         {"bad_span"}),
        ("question-answering", {"question": "q", "context": "c", "answers": ["c"]},
         {"wrong_type"}),
        ("multiple-choice", {"question": "q", "choices": ["a", " "], "answer": 0},
         {"empty_text"}),
        ("text-generation", {"prompt": "p", "completion": "c", "references": [" "]},
         {"empty_text"}),
        ("text-generation", {"messages": [{"role": "system", "content": "s"}]}, {"bad_turns"}),
        ("text-generation",
         {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                       {"role": "user", "content": "c"}]}, {"bad_turns"}),
    ],
)  # fmt: skip
def test_refused_rows(task: str, row: dict[str, object], codes: set[str]) -> None:
    record, problems = check_record(task, row)
    assert record is None
    assert {problem.code for problem in problems} == codes


def test_importing_the_package_loads_no_torch() -> None:
    code = (
        "import sys, peft_engine.records; assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path.cwd(), check=False)
    assert done.returncode == 0
