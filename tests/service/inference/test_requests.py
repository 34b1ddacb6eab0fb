"""What a request may be, and how the process says that it may not."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from peft_engine.bases.base import Base
from peft_engine.training.preview import preview
from tests.service.inference.conftest import Process, Row, Shelf, Start, Stored


def ask(stored: Stored, value: Any = "my card", **more: Any) -> Row:
    return {"input": value, "base_model": "bert", "delta": stored.reference, **more}


@pytest.fixture
def stored(shelf: Shelf) -> Stored:
    return shelf.put("bert", seed=1)


def test_a_row_that_is_too_long_is_told_the_limit_and_its_length(
    process: Process, stored: Stored
) -> None:
    error = process.error([ask(stored), ask(stored, "card " * 100)], 400)
    assert error["code"] == "too_long"
    assert error["param"].startswith("rows.1")
    assert "102 tokens" in error["message"]
    assert "48" in error["message"]
    assert process.parts.scheduler.state().batches == 0


@pytest.mark.parametrize(
    "value",
    [None, 3, [], {}, {"text": 7}, {"question": "?"}, {"text": "a", "text_pair": 1}],
    ids=repr,
)
def test_a_row_of_the_wrong_shape_is_named(process: Process, stored: Stored, value: Any) -> None:
    rows = [ask(stored)] * 3 + [ask(stored, value)]
    error = process.error(rows, 400)
    assert error["code"] == "bad_input"
    assert error["param"].startswith("rows.3")
    assert error["type"] == "invalid_request_error"


def test_too_many_rows_are_told_the_limit(start: Start, stored: Stored) -> None:
    process = start(max_predict_rows=4)
    error = process.error([ask(stored)] * 5, 400)
    assert error["code"] == "too_many_rows"
    assert error["param"] == "rows"
    assert "5 rows" in error["message"]
    assert "4" in error["message"]
    process.predict([ask(stored)] * 4)


def test_too_many_characters_are_refused_before_they_are_read(start: Start, stored: Stored) -> None:
    process = start(max_predict_chars=100)
    assert process.error([ask(stored, "x" * 101)], 400)["code"] == "too_long"
    nested = {"messages": [{"role": "user", "content": "x" * 101}]}
    assert process.error([{"input": nested, "base_model": "llama"}], 400)["code"] == "too_long"


def test_an_unknown_base_and_one_that_is_not_served(start: Start, stored: Stored) -> None:
    process = start(served_base_models=["bert"])
    unknown = process.error([ask(stored), ask(stored, base_model="gpt")], 404)
    assert (unknown["code"], unknown["param"]) == ("base_not_found", "rows.1.base_model")
    elsewhere = process.error([{"input": "x", "base_model": "llama"}], 409)
    assert elsewhere["code"] == "base_not_served"


def test_rows_are_read_as_training_reads_them(
    process: Process, tiny_bases: dict[str, Base]
) -> None:
    record = {"prompt": "hi", "completion": "where is my card"}
    asked = {"base_model": "llama@int8", "task": "text-generation", "records": [record] * 2}
    seen = process.client.post("/preview", json=asked).json()
    base = tiny_bases["llama"]
    assert (seen["base_model"], seen["base_fingerprint"]) == ("llama", base.fingerprint)
    wanted = preview(base, "text-generation", [record] * 2, max_length="auto")
    assert seen["records"] == json.loads(json.dumps(asdict(wanted)))["records"]
    refused = process.client.post("/preview", json=asked | {"max_length": 10**6})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "too_long", "max_length")
    unknown = process.client.post("/preview", json=asked | {"base_model": "nobody"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "base_not_found")


def test_a_task_that_is_not_the_adapters_is_refused(process: Process, stored: Stored) -> None:
    error = process.error([ask(stored, task="text-generation")], 400)
    assert error["param"].startswith("rows.0")


def test_a_wrong_option_is_refused(process: Process) -> None:
    row = {"input": "hi", "base_model": "llama", "options": {"temperature": -1}}
    error = process.error([row], 400)
    assert error["param"].startswith("rows.0")


ODD_VALUES: list[Any] = [
    None, True, 0, -1, 1.5, 1e308, "", " ", "\u0000", "[CLS] [SEP] <|end|>", "🙂" * 8, [], [[]],
    [None],     {}, {"text": None}, {"text": ["a"]}, {"text": "a", "text_pair": {}}, {"prompt": 1},
    {"messages": None}, {"messages": []}, {"messages": [1]}, {"messages": [{"role": "user"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
    {"messages": [{"role": "assistant", "content": "a"}]},
]  # fmt: skip


def test_no_input_is_a_fault_of_ours(process: Process) -> None:
    for value in ODD_VALUES:
        for base, options in (("bert", {}), ("llama", {"max_new_tokens": 2})):
            answer = process.post([{"input": value, "base_model": base, "options": options}])
            assert answer.status_code in {200, 400}, (value, answer.text)


@pytest.mark.parametrize(
    "option", ["max_new_tokens", "temperature", "top_p", "top_k", "stop", "seed", "labels", "x"]
)
def test_no_option_is_a_fault_of_ours(process: Process, option: str) -> None:
    base = "bert" if option == "labels" else "llama"
    given = {"max_new_tokens": 2} if base == "llama" else {}
    for value in ODD_VALUES:
        row = {"input": "my card", "base_model": base, "options": {**given, option: value}}
        answer = process.post([row])
        assert answer.status_code in {200, 400}, (value, answer.text)


@pytest.mark.parametrize(
    "body",
    [
        b'{"rows": [{"base_model": "llama", "input": "a", "options": {"stop": "\\ud800"}}]}',
        b'{"rows": [{"input": "\\ud800", "base_model": "llama"}]}',
        b'{"rows": [{"input": "\\ud800", "base_model": "bert"}]}',
        b'{"rows": ' + b"[" * 100_000,
        b'{"rows": [{"base_model": "bert", "input": ' + b"[" * 800 + b"]" * 800 + b"}]}",
        b'{"rows": [{"base_model": "bert", "input": NaN}]}',
        b"\xff\xfe",
        b"[]",
        b"null",
        b"",
    ],
    ids=lambda body: str(body[:60]),
)
def test_no_body_is_a_fault_of_ours(process: Process, body: bytes) -> None:
    answer = process.client.post(
        "/predict", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"{", "invalid_json", None),
        (b"{}", "missing_field", "rows"),
        (b'{"rows": []}', "bad_input", "rows"),
        (b'{"rows": [{"input": 1}]}', "missing_field", "rows.0.base_model"),
        (b'{"rows": [{"input": 1, "base_model": "bert", "x": 1}]}', "unknown_field", "rows.0.x"),
    ],
)
def test_a_malformed_body_is_answered_in_the_one_shape(
    process: Process, body: bytes, code: str, param: str | None
) -> None:
    answer = process.client.post(
        "/predict", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"]


def test_unknown_paths_and_methods_have_the_one_shape(process: Process) -> None:
    assert process.client.get("/nothing").json()["error"]["code"] == "not_found"
    answer = process.client.get("/predict")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
