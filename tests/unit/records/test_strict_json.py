"""Strict JSON: whatever comes in, a record comes out or a reason, never another error."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_engine.records.census import canonical_json
from peft_engine.records.options import Limits
from peft_engine.records.problems import CODES
from peft_engine.records.strict_json import Refused, StrictDecoder

DECODER = StrictDecoder(Limits())

# What JSON can hold and a data base can store: no half surrogates, no U+0000.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(st.dictionaries(TEXTS, VALUES), st.booleans())
def test_what_is_valid_stays_as_it_is(record: dict[str, object], ascii_only: bool) -> None:
    assert DECODER.record(json.dumps(record, ensure_ascii=ascii_only)) == record


@given(st.dictionaries(TEXTS, VALUES))
def test_canonical_json_is_one_line_for_every_reader(record: dict[str, object]) -> None:
    text = canonical_json(record)
    assert DECODER.record(text) == record
    assert len(text.splitlines()) == 1


def refusal_of(text: str) -> Refused | None:
    try:
        DECODER.record(text)
    except Refused as refused:
        return refused
    return None


@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_garbage_is_refused_with_a_reason(text: str) -> None:
    refused = refusal_of(text)
    if refused is None:
        assert DECODER.record(text) == json.loads(text)
    else:
        assert refused.code in CODES
        assert refused.message
        assert refused.fix


@given(st.text('{}[]":,\\u0dD8 \ntrue1eN', max_size=40))
def test_nearly_json_is_refused_with_a_reason(text: str) -> None:
    refused = refusal_of(text)
    assert refused is None or refused.code in CODES


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"a": {"b": 1, "b": 2}}', "duplicate_key"),
        ('{"a": -Infinity}', "not_a_number"),
        ('{"a": -1e999}', "not_a_number"),
        ('{"a": ' + "9" * 41 + "}", "integer_too_large"),
        ('{"a": "\\u0000"}', "nul_character"),
        ('{"\\u0000": 1}', "nul_character"),
        ('{"a": ["x", "\\uDFFF"]}', "lone_surrogate"),
        ('{"a": "\\ud83d\\u0041"}', "lone_surrogate"),
        ('{"a": "tab\there"}', "control_character"),
        ('{"a": ' + "[" * 65 + "]" * 65 + "}", "too_deep"),
        ("[" * 1_000_000, "too_deep"),
        ('{"a": 1} {"b": 2}', "several_objects"),
        ('{"a": 1}\r{"b": 2}', "several_objects"),
        ('{"a": 1} tail', "not_json"),
        ("{'a': 1}", "single_quotes"),
        ('{"a": 1,}', "not_json"),
        ('{"a": 1', "not_json"),
        ("true", "not_an_object"),
        ("", "not_json"),
    ],
)
def test_refusals(text: str, code: str) -> None:
    with pytest.raises(Refused) as refused:
        DECODER.record(text)
    assert refused.value.code == code


def test_brackets_inside_strings_are_not_depth() -> None:
    record = {"a": "[{" * 1_000, "b": '\\"[['}
    assert DECODER.record(json.dumps(record)) == record


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert DECODER.record('{"a": "\\ud83d\\ude00"}') == {"a": "😀"}


def test_many_messages_are_not_deep() -> None:
    record = {"messages": [{"role": "user", "content": "x"}] * 500}
    assert DECODER.record(json.dumps(record)) == record
