"""Inputs of which a tokenizer makes no token are refused in words, by whoever reads them."""

from collections.abc import Mapping
from typing import Any

import pytest

from peft_engine.bases.base import Base
from peft_engine.errors import DataError, RowError
from peft_engine.serving import Row, prepare_row
from peft_engine.tasks.regression import Regression
from peft_engine.tasks.text_classification import TextClassification
from peft_engine.training import NoCheckpoints, train
from tests.engine.test_training import job

EMPTY_TURN: Mapping[str, Any] = {"messages": [{"role": "user", "content": ""}]}


@pytest.mark.parametrize("task", [TextClassification(), Regression()])
def test_an_empty_text_is_an_input_where_a_base_has_tokens_of_its_own(
    bert: Base, llama: Base, task: TextClassification | Regression
) -> None:
    (example,) = task.encode_input(bert, "", max_length=10)
    assert example.rows[0].tokens == 2
    with pytest.raises(RowError, match="no token") as refused:
        task.encode_input(llama, "", max_length=10)
    assert (refused.value.code, refused.value.param) == ("bad_input", "input")


def test_a_prompt_without_a_token_is_refused_alone(gpt2: Base, llama: Base) -> None:
    with pytest.raises(RowError, match="no token"):
        prepare_row(gpt2, Row(None, EMPTY_TURN, None, {}))
    prepared = prepare_row(llama, Row(None, EMPTY_TURN, None, {}))  # its template writes a turn
    assert prepared.examples[0].input_ids


def test_training_names_what_it_cannot_learn_from(llama: Base) -> None:
    rows = [{"text": text, "label": label} for text, label in (("my", "a"), ("", "b"))]
    with pytest.raises(DataError, match="its text is empty") as refused:
        train(
            llama,
            job(),
            {"train": rows, "validation": [], "test": []},
            control=lambda: None,
            emit=lambda _: None,
            checkpoints=NoCheckpoints(),
        )
    assert refused.value.code == "nothing_to_learn"
