"""What a call for predictions may hold, before anything is looked up for it."""

import tracemalloc
from typing import Any

import pytest

from app.schemas.predictions import PredictRequest
from app.schemas.shared import walk_texts
from app.services.known_adapters import KnownAdapters
from app.services.predictions import MAX_LABELS, MAX_OPTION_CHARS, Planned, plan_rows
from core.errors import BadInput, TooLarge
from core.settings import load_settings


def plan(**body: Any) -> Planned:
    return plan_rows(
        None,
        settings=load_settings(base_models={"minilm": "pkg:x"}),
        known=KnownAdapters(),
        tenant_id="t",
        request=PredictRequest.model_validate({"base_model": "minilm"} | body),
    )


@pytest.mark.parametrize("more", [{}, {"compare": [None]}], ids=["alone", "compared"])
def test_options_are_bounded_by_the_rows_that_they_stand_in(more: dict[str, Any]) -> None:
    """Every row of the internal request has its own: 1 MB of stop texts became 732 MB."""
    rows = 256 // (1 + len(more))
    options = {"stop": "a" * (MAX_OPTION_CHARS // 256)}
    with pytest.raises(TooLarge) as caught:
        plan(inputs=["my card"] * rows, options=options, **more)
    assert caught.value.param == "options"
    assert len(plan(inputs=["my card"], options=options).rows) == 1
    labels = [f"the label of number {place}" for place in range(MAX_LABELS)]
    assert len(plan(inputs=["my card"] * 256, options={"labels": labels}).rows) == 256


def test_what_is_no_text_takes_no_memory_to_look_at() -> None:
    body = [[0] * 300_000, {"a": [None] * 300_000}]
    tracemalloc.start()
    try:
        assert list(walk_texts(body, "inputs")) == [("inputs.1", "a")]
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_texts_are_found_with_their_places() -> None:
    value = {"a": ["x", {"b": "y", "c": [["z"]]}], "d": ("w", 1), "k" * 500: "v"}
    assert list(walk_texts(value)) == [
        ("", "a"),
        ("a.0", "x"),
        ("a.1", "b"),
        ("a.1.b", "y"),
        ("a.1", "c"),
        ("a.1.c.0.0", "z"),
        ("", "d"),
        ("d.0", "w"),
        ("", "k" * 500),
        ("k" * 200, "v"),
    ]
    assert list(walk_texts("t", "inputs.0")) == [("inputs.0", "t")]
    with pytest.raises(BadInput) as caught:
        plan(inputs=["ok", {"text": ["fine", "\ud800"]}])
    assert caught.value.param == "inputs.1.text.1"
