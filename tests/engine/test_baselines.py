"""What there is without tuning, in closed form and against transformers."""

import math
from typing import Any

import pytest
import torch

from peft_engine.bases.base import Base
from peft_engine.parts.classes import prior_logits
from peft_engine.tasks import likelihood
from peft_engine.tasks.likelihood import score_choices, score_labels
from peft_engine.tasks.protocol import Encoded, HeadTask
from peft_engine.tasks.table import find_task
from peft_engine.training.head_start import FeatureStore, FrozenBase
from tests.engine.task_sets import SETS
from tests.engine.test_training import CLASSIFICATION


def frozen_of(base: Base) -> FrozenBase:
    return FrozenBase(base, FeatureStore(), lambda: None)


def theirs(base: Base, prompt: str, answer: str) -> float:
    """Mean log-likelihood of an answer, by the loss of transformers itself."""
    before, own = base.text.encode_plain(prompt), base.text.encode_plain(answer)
    ids = torch.tensor([[*before, *own]], device=base.device)
    labels = torch.tensor([[-100] * len(before) + own], device=base.device)
    with torch.no_grad():
        return -float(base.model(input_ids=ids, labels=labels).loss)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_labels_are_scored_by_their_likelihood(family: str, request: pytest.FixtureRequest) -> None:
    base: Base = request.getfixturevalue(family)
    records = [{"text": "my card"}, {"text": "where is it", "text_pair": "money is late"}]
    found = score_labels(frozen_of(base), records, ["lost_card", "new"], max_length=100)
    assert found.rows == [0, 1]
    prompts = ["my card\nLabel:", "where is it\nmoney is late\nLabel:"]
    for scores, prompt in zip(found.scores, prompts, strict=True):
        expected = [theirs(base, prompt, answer) for answer in (" lost card", " new")]
        assert scores.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_decoder_is_asked_for_the_whole_label(
    family: str, request: pytest.FixtureRequest
) -> None:
    base: Base = request.getfixturevalue(family)
    records = [{"text": "my card is lost and so am I"}]
    found = score_labels(frozen_of(base), records, ["lost_card", "new"], max_length=24)
    asks = base.text.encode_plain("\nLabel:")
    around = base.text.encode_inputs([""], max_length=24)[0].input_ids
    room = 24 - len(asks) - len(around)
    body = base.text.encode_plain("my card is lost and so am I")[:room]
    prompt = torch.tensor([[*around[:-1], *body, *asks, *around[-1:]]], device=base.device)
    for score, label in zip(found.scores[0].tolist(), ("lost card", "new"), strict=True):
        start, own = base.text.encode_answer(label)
        decoded = torch.tensor([[*start.input_ids, *own.input_ids]], device=base.device)
        targets = torch.tensor(
            [[-100] * (len(start.input_ids) - 1) + own.input_ids], device=base.device
        )
        with torch.no_grad():
            loss = base.model(
                input_ids=prompt, decoder_input_ids=decoded[:, :-1], labels=targets
            ).loss
        assert score == pytest.approx(-float(loss), rel=1e-4)


def test_choices_are_scored_by_their_likelihood(llama: Base) -> None:
    records = [{"question": "where", "choices": ["lost", "a new card", "b"]}]
    (scores,) = score_choices(frozen_of(llama), records, max_length=100).scores
    prompt = "Question: where\nAnswer:"
    expected = [theirs(llama, prompt, answer) for answer in (" lost", " a new card", " b")]
    assert scores.tolist() == pytest.approx(expected, rel=1e-4)


def test_long_texts_lose_their_end_and_never_the_question(llama: Base) -> None:
    records = [{"text": "x" * 200}]
    found = score_labels(frozen_of(llama), records, ["yes", "n" * 90], max_length=40)
    most = 40 - len("\nLabel:")
    expected = [theirs(llama, "\nLabel:", own) for own in (" yes", f" {'n' * (most - 1)}")]
    assert found.scores[0].tolist() == pytest.approx(expected, rel=1e-4)


def test_with_too_many_tokens_evenly_spaced_rows_are_asked(
    llama: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [{"text": f"{i}{i}"} for i in range(8)]
    whole = score_labels(frozen_of(llama), records, ["a", "b"], max_length=40)
    tokens_of_a_row = 2 * len("00\nLabel: a")
    monkeypatch.setattr(likelihood, "MAX_SCORED_TOKENS", 3 * tokens_of_a_row)
    some = score_labels(frozen_of(llama), records, ["a", "b"], max_length=40)
    assert some.rows == [0, 2, 5]
    for row, scores in zip(some.rows, some.scores, strict=True):
        assert scores.tolist() == pytest.approx(whole.scores[row].tolist(), abs=1e-5)


def baselines_of(base: Base, task_name: str, splits: Any) -> dict[str, dict[str, float]]:
    task = find_task(task_name, splits["train"])
    assert isinstance(task, HeadTask)
    labels = task.find_labels(splits["train"])
    train, test = (
        Encoded(splits[name], task.encode(base, splits[name], labels=labels, max_length=48))
        for name in ("train", "test")
    )
    frozen = frozen_of(base)
    head = task.first_head(frozen, train.examples, labels=labels)
    found = task.baselines(frozen, head, train, test)
    assert any(own.rows == len(test.records) for own in found)
    return {own.what: dict(own.evaluation.metrics) for own in found}


def test_the_majority_class_by_hand(bert: Base) -> None:
    splits = {
        "train": [{"text": "card", "label": "b"}] * 3 + [{"text": "money", "label": "a"}],
        "test": [{"text": "late", "label": "b"}, {"text": "new", "label": "a"}],
    }
    found = baselines_of(bert, "text-classification", splits)
    (own,) = [metrics for what, metrics in found.items() if "most frequent class" in what]
    # one row is added to each class: 2/6 and 4/6
    assert own["accuracy"] == 0.5
    assert own["loss"] == pytest.approx(-(math.log(4 / 6) + math.log(2 / 6)) / 2)
    assert own["ece"] == pytest.approx(4 / 6 - 0.5)
    assert own["mcc"] == 0
    assert prior_logits(torch.tensor([1, 3]), 2).exp()[0].tolist() == pytest.approx([1 / 3, 2 / 3])


@pytest.mark.parametrize(
    ("name", "family", "words"),
    [
        ("multi-label", "bert", ("nearer centroid", "more than half")),
        ("multi-label", "llama", ("nearer centroid", "more than half")),
        ("regression", "bert", ("mean of the training values",)),
        ("similarity", "bert", ("mean of the training values", "cosine of the two texts")),
        ("tags", "llama", ("most frequent training tag",)),
        ("relation", "bert", ("nearest class centroid", "most frequent class")),
        ("relation", "llama", ("nearest class centroid", "most frequent class")),
        ("choice", "sentence_bert", ("nearest to the question", "the place at which")),
        ("choice", "llama", ("asked in words", "nearest to the question", "the place at which")),
        ("question", "bert", ("shares most words", "no answer to any question")),
    ],
)
def test_every_task_tells_all_that_it_looked_at(
    name: str, family: str, words: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    task, splits = SETS[name]
    found = baselines_of(request.getfixturevalue(family), task, splits)
    assert len(found) == len(words)
    for word in words:
        assert any(word in what for what in found), word


def test_a_causal_base_is_asked_for_the_label_in_words(llama: Base) -> None:
    found = baselines_of(llama, "text-classification", CLASSIFICATION)
    (own,) = [metrics for what, metrics in found.items() if "asked in words" in what]
    labels = sorted({row["label"] for row in CLASSIFICATION["train"]})
    right = 0
    for row in CLASSIFICATION["test"]:
        scores = [theirs(llama, f"{row['text']}\nLabel:", f" {label}") for label in labels]
        right += labels[scores.index(max(scores))] == row["label"]
    assert own["accuracy"] == right / len(CLASSIFICATION["test"])
