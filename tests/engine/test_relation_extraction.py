"""Marked spans: where they stand, what is cut, what is refused."""

import pytest
import torch

from peft_engine.bases.base import Base
from peft_engine.bases.forward import hidden_states
from peft_engine.configs.manifest import RelationHeadSpec
from peft_engine.errors import RowError
from peft_engine.parts.batching import collate
from peft_engine.tasks.relation_extraction import RelationExtraction, mark_spans

SPANS = [
    ((3, 7), (11, 16)),
    ((11, 16), (3, 7)),
    ((3, 16), (11, 16)),
    ((3, 7), (3, 16)),
    ((0, 2), (2, 3)),
]


@pytest.mark.parametrize(("head", "tail"), SPANS)
def test_marks_stand_around_the_spans_and_offsets_follow(
    head: tuple[int, int], tail: tuple[int, int]
) -> None:
    text = "my card is lost \U0001f622 caf\u0065\u0301"
    marked, new_head, new_tail = mark_spans(text, head, tail)
    assert marked.replace(" $ ", "").replace(" # ", "") == text
    for old, (start, end), mark in ((head, new_head, "$"), (tail, new_tail, "#")):
        within = marked[start:end].replace(" $ ", "").replace(" # ", "")
        assert within == text[slice(*old)]
        assert marked[:start].endswith(f" {mark} ")
        assert marked[end:].startswith(f" {mark} ")


def test_features_are_the_pooled_one_and_the_means_of_both_spans(bert: Base) -> None:
    task = RelationExtraction()
    record = {
        "tokens": ["where", "is", "my", "card", "order"],
        "head": {"start": 2, "end": 4},
        "tail": {"start": 4, "end": 5},
        "label": "b",
    }
    (example,) = task.encode(bert, [record], labels=("a", "b"), max_length=30)
    assert example.target == 1
    batch = collate([example], pad_id=0, device=bert.device)
    with torch.no_grad():
        hidden = hidden_states(bert, batch)
        found = task.features(RelationHeadSpec(pooling="mean"), hidden, batch)
    # [CLS] where is $ my card $ # order # [SEP]
    parts = [hidden[0].mean(0), hidden[0, 4:6].mean(0), hidden[0, 8]]
    unit = torch.nn.functional.normalize
    expected = torch.cat([unit(part, dim=-1) for part in parts])
    assert torch.allclose(found[0], expected, atol=1e-5)


def test_spans_at_the_end_of_a_long_text_are_kept(bert: Base) -> None:
    text = "where is " * 20 + "card order"
    start = text.index("card")
    record = {
        "text": text,
        "head": {"start": start, "end": start + 4},
        "tail": {"start": start + 5, "end": start + 10},
        "label": "a",
    }
    (example,) = RelationExtraction().encode(bert, [record], labels=("a", "b"), max_length=20)
    assert None not in example.layout
    # what stood before the spans is lost too: words, two marks of two tokens, and both ends
    assert example.cut_tokens == 20 * 2 + 2 + 4 + 2 - example.rows[0].tokens
    ids = list(example.input_ids)
    head, tail = example.layout
    vocabulary = bert.text.encode_plain("card order")
    assert [ids[head[0]], ids[tail[0]]] == vocabulary


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"head": None}, "input.head"),
        ({"head": {"start": 3, "end": 2}}, "input.head"),
        ({"tail": {"start": 0, "end": 99}}, "input.tail"),
        ({"tail": {"start": True, "end": 3}}, "input.tail"),
        ({"text": ""}, "input.text"),
        ({"tokens": ["my", 3]}, "input.tokens"),
        ({"text": "my card " * 30}, "input"),
    ],
)
def test_inputs_of_another_shape_are_refused(
    bert: Base, change: dict[str, object], param: str
) -> None:
    good = {"text": "my card", "head": {"start": 0, "end": 2}, "tail": {"start": 3, "end": 7}}
    task = RelationExtraction()
    assert task.encode_input(bert, good, max_length=30)
    with pytest.raises(RowError) as caught:
        task.encode_input(bert, {**good, **change}, max_length=30)
    assert caught.value.param == param
    assert caught.value.code == ("too_long" if param == "input" else "bad_input")
