"""What a preview shows is what a job reads."""

import pytest

from peft_engine.bases.base import Base
from peft_engine.errors import ConfigError, DataError
from peft_engine.tasks.table import find_task
from peft_engine.training.preview import preview
from tests.engine.task_sets import SETS


@pytest.mark.parametrize("name", SETS)
def test_every_task_shows_the_tokens_that_it_trains_on(bert: Base, name: str) -> None:
    task_name, splits = SETS[name]
    records = splits["train"][:3]
    found = preview(bert, task_name, records, max_length=12)
    task = find_task(task_name, splits["train"])
    labels = task.find_labels(splits["train"])
    examples = task.encode(bert, records, labels=labels, max_length=12)
    parts = [part for own in found.records for part in own]
    assert len(found.records) == 3
    assert [len(own) for own in found.records] == [
        sum(example.record == place for example in examples) for place in range(3)
    ]
    for part, example in zip(parts, examples, strict=True):
        assert [list(row.ids) for row in part.rows] == [list(row.input_ids) for row in example.rows]
        assert part.cut_tokens == example.cut_tokens
        assert (part.decoder, part.rows[0].learned) == (None, None)
        assert part.rows[0].tokens[0] == "[CLS]"


def test_the_mask_of_texts_is_the_completion(llama: Base) -> None:
    record = {"prompt": "where is my card", "completion": "it is lost"}
    whole, cut = (
        preview(llama, "text-generation", [record], max_length=length).records[0][0]
        for length in ("auto", 8)
    )
    (row,) = whole.rows
    assert row.learned is not None
    learned = [token for token, counts in zip(row.tokens, row.learned, strict=True) if counts]
    assert "".join(learned).replace(" ", "").startswith("itislost")
    assert (whole.cut_tokens, cut.cut_tokens) == (0, len(row.ids) - 8)
    assert len(cut.rows[0].ids) == 8


def test_two_stacks_show_what_is_read_and_what_is_written(t5: Base) -> None:
    record = {"prompt": "where is my card", "completion": "it is lost"}
    (part,) = preview(t5, "text-generation", [record], max_length=32).records[0]
    assert part.decoder is not None
    assert part.decoder.learned is not None
    assert part.rows[0].learned is None
    assert part.decoder.learned[0] is False
    assert all(part.decoder.learned[1:])


def test_what_would_fail_a_job_is_refused(bert: Base, llama: Base) -> None:
    text = [{"prompt": "a", "completion": "b"}]
    for base, task, length, code in (
        (bert, "text-generation", 8, "task_not_supported"),
        (llama, "text-generation", 10**6, "too_long"),
    ):
        with pytest.raises(ConfigError) as caught:
            preview(base, task, text, max_length=length)
        assert caught.value.code == code
    with pytest.raises(DataError):
        preview(llama, "text-generation", [{"text": ""}], max_length=8)
