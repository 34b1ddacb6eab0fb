"""Losses and metrics against independent implementations."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    classification_report,
    confusion_matrix,
    f1_score,
    log_loss,
    matthews_corrcoef,
)
from torch.nn.functional import cross_entropy

from peft_engine.bases.base import Base
from peft_engine.bases.forward import hidden_states
from peft_engine.configs.metrics import METRICS
from peft_engine.errors import DataError, RowError
from peft_engine.generation import Generated, Sampling
from peft_engine.parts.batching import batches_by_length, collate, epoch_batches
from peft_engine.parts.classes import evaluate_logits
from peft_engine.parts.fits import fit_head
from peft_engine.parts.statistics import mean_of_rows, paired_intervals
from peft_engine.router import Router
from peft_engine.tasks import text_generation
from peft_engine.tasks.table import HEAD_TASKS, TASKS
from peft_engine.tasks.text_classification import TextClassification
from peft_engine.tasks.text_generation import TextGeneration
from peft_engine.training.forwards import EvaluationForward


def test_classification_metrics_are_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 5, generator=generator)
    targets = np.arange(60) % 4  # class 4 is predicted but never right
    found = evaluate_logits(logits, targets, labels="abcde")
    predicted = logits.argmax(-1).numpy()
    shares = logits.double().softmax(-1).numpy()
    assert found.metrics["accuracy"] == accuracy_score(targets, predicted)
    assert found.metrics["loss"] == pytest.approx(log_loss(targets, shares, labels=range(5)))
    for average in ("macro", "weighted"):
        expected = f1_score(targets, predicted, average=average, zero_division=0)
        assert found.metrics[f"{average}_f1"] == pytest.approx(expected)
    assert found.metrics["mcc"] == pytest.approx(matthews_corrcoef(targets, predicted))
    for name, rows in found.rows.items():
        assert rows.value == pytest.approx(found.metrics[name]), name
    report = classification_report(
        targets, predicted, target_names=list("abcde"), output_dict=True, zero_division=0
    )
    for row in found.details["classes"]:
        own = report[row["label"]]
        assert row["support"] == own["support"]
        scores = [row["precision"], row["recall"], row["f1"]]
        expected_scores = [own["precision"], own["recall"], own["f1-score"]]
        assert scores == pytest.approx(expected_scores, abs=1e-6)
    matrix = confusion_matrix(targets, predicted)
    for own in found.details["confusions"]:
        assert own["count"] == matrix["abcde".index(own["label"]), "abcde".index(own["predicted"])]
    assert sum(own["count"] for own in found.details["confusions"]) == (targets != predicted).sum()


def test_tables_are_bounded() -> None:
    targets = (np.arange(300) + 1) % 300  # every class is taken for another one
    labels = [f"{i:03}" for i in range(300)]
    found = evaluate_logits(torch.eye(300), targets, labels=labels).details
    assert (len(found["classes"]), len(found["confusions"])) == (100, 50)


def test_the_paired_interval_holds_the_difference_and_knows_when_there_is_none() -> None:
    generator = np.random.default_rng(0)
    before = (generator.random(400) < 0.7).astype(float)
    after = np.maximum(before, (generator.random(400) < 0.3).astype(float))
    one, other = {"it": mean_of_rows(before)}, {"it": mean_of_rows(after)}
    same = paired_intervals(one, one)["it"]
    assert (same.low, same.high) == (0.0, 0.0)
    found = paired_intervals(one, other)["it"]
    difference = after.mean() - before.mean()
    error = np.std(after - before) / 20
    assert found.low < difference < found.high
    assert found.low == pytest.approx(difference - 1.96 * error, abs=0.01)
    assert found.high == pytest.approx(difference + 1.96 * error, abs=0.01)


class ToldForward(EvaluationForward):
    """Notes how long the prompts of each batch are, and how much each may write."""

    def __init__(self, base: Base) -> None:
        super().__init__(base, Router(base.trunk), None, lambda: None)
        self.batches: list[tuple[list[int], int]] = []

    def generate(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling]
    ) -> list[Generated]:
        self.batches.append(([len(p) for p in prompts], samplings[0].max_new_tokens))
        return super().generate(prompts, [Sampling(max_new_tokens=1)] * len(prompts))


def test_a_long_prompt_is_answered_alone_and_takes_no_room_from_others(
    llama: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_generation, "MAX_EVALUATION_TOKENS", 40)  # all prompts leave that
    task = TextGeneration()
    records = [{"prompt": "a" * length, "completion": "b"} for length in (3, 150, 5, 3, 4)]
    examples = task.encode(llama, records, labels=None, max_length=200)
    evaluated = {"batch_size": 3, "generate_rows": 5}
    free = ToldForward(llama)
    task.evaluate(free, None, examples, records, **evaluated)
    assert [len(lengths) for lengths, _ in free.batches] == [3, 2]
    longest = max(max(lengths) for lengths, _ in free.batches)
    monkeypatch.setattr(text_generation, "MOST_ATTENDED", longest**2)
    bounded = ToldForward(llama)
    task.evaluate(bounded, None, examples, records, **evaluated)
    assert [len(lengths) for lengths, _ in bounded.batches] == [1, 3, 1]
    assert {most for _, most in bounded.batches} == {40}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_prompts_that_leave_no_room_for_an_answer_are_not_answered(
    family: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_generation, "MAX_EVALUATION_TOKENS", 40)
    base: Base = request.getfixturevalue(family)
    records = [
        {"prompt": "a" * length, "completion": "b"} for length in (3, base.max_length + 40, 5)
    ]
    examples = TextGeneration().encode(base, records, labels=None, max_length=base.max_length)
    forward = ToldForward(base)
    found = TextGeneration().evaluate(
        forward, None, examples, records, batch_size=3, generate_rows=3
    )
    ((lengths, _),) = forward.batches
    assert len(lengths) == 2
    assert max(lengths) < base.max_length
    assert "bleu" in found.metrics
    with pytest.raises(RowError, match="the context holds"):
        TextGeneration().encode_input(base, records[1]["prompt"], max_length=base.max_length)


@pytest.mark.parametrize(("rows", "last"), [(60, 59), (100, 99), (199, 197), (250, 247)])
def test_answered_rows_stand_over_the_whole_split(rows: int, last: int) -> None:
    records = [{"prompt": str(number), "completion": "x"} for number in range(rows)]
    found = [int(record["prompt"]) for record in text_generation.answered_rows(records, 100)]
    assert len(found) == min(rows, 100)
    assert (found[0], found[-1]) == (0, last)


def test_only_the_completion_is_learned(llama: Base) -> None:
    """The loss is that of transformers with the prompt masked out."""
    task = TextGeneration()
    records = [
        {"prompt": "name: a", "completion": "hello"},
        {"prompt": "b", "completion": "a much longer answer"},
    ]
    examples = task.encode(llama, records, labels=None, max_length=100)
    batch = collate(examples, pad_id=0, device=llama.device)
    with torch.no_grad():
        hidden = hidden_states(llama, batch)
        loss = task.loss(llama, None, hidden, batch, label_smoothing=0.0)
        labels = torch.full_like(batch.input_ids, -100)
        for row, example in enumerate(examples):
            for place, learned in enumerate(example.target):
                if learned:
                    labels[row, place] = example.input_ids[place]
        logits = llama.model(input_ids=batch.input_ids, attention_mask=batch.mask).logits
        expected = cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
        )
    assert loss.count == len("hello") + len("a much longer answer") + 2
    assert torch.allclose(loss.total, expected, rtol=1e-4)


def test_a_long_prompt_is_cut_and_never_the_completion_first(llama: Base) -> None:
    (example,) = TextGeneration().encode(
        llama, [{"prompt": "x" * 90, "completion": "yes"}], labels=None, max_length=40
    )
    assert len(example.input_ids) == 40
    assert example.cut_tokens > 0
    assert sum(example.target) == len("yes") + 1
    with pytest.raises(DataError, match="no token to learn"):
        TextGeneration().encode(
            llama, [{"messages": [{"role": "user", "content": "a"}]}], labels=None, max_length=40
        )


def test_labels_are_found_and_strangers_named(bert: Base) -> None:
    task = TextClassification()
    assert task.find_labels([{"text": "a", "label": "b"}, {"text": "a", "label": "a"}]) == (
        "a",
        "b",
    )
    with pytest.raises(DataError, match="two labels"):
        task.find_labels([{"text": "a", "label": "b"}])
    with pytest.raises(DataError, match="neutral"):
        task.encode(bert, [{"text": "a", "label": "neutral"}], labels=("a", "b"), max_length=20)


@pytest.mark.parametrize("value", [3, {"text": 3}, {"text": "a", "text_pair": 1}, None, ["a"]])
def test_inputs_of_another_shape_are_refused(bert: Base, value: object) -> None:
    with pytest.raises(RowError) as caught:
        TextClassification().encode_input(bert, value, max_length=20)
    assert caught.value.code == "bad_input"


def test_a_long_input_is_refused_with_both_numbers(bert: Base) -> None:
    with pytest.raises(RowError, match="32 tokens and 20 are read at most"):
        TextClassification().encode_input(bert, "card " * 30, max_length=20)


def test_the_first_head_is_the_logistic_regression_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(120, 8, generator=generator), dim=-1)
    targets = (features[:, 0] > 0).long() + (features[:, 1] > 0).long()
    found = fit_head(features, targets, classes=3)
    theirs = LogisticRegression(C=10, max_iter=1000, tol=1e-8).fit(
        features.numpy(), targets.numpy()
    )
    ours = torch.nn.functional.linear(features, found["weight"], found["bias"]).softmax(-1)
    assert np.abs(ours.numpy() - theirs.predict_proba(features.numpy())).max() < 2e-3


def test_every_row_stands_in_one_batch_of_an_epoch(bert: Base) -> None:
    texts = [{"text": "card " * (1 + i % 9), "label": "a"} for i in range(101)]
    examples = TextClassification().encode(bert, texts, labels=("a", "b"), max_length=40)
    for batches in (
        batches_by_length(examples, batch_size=8),
        epoch_batches(examples, batch_size=8, seed=0, epoch=0),
    ):
        assert sorted(row for batch in batches for row in batch) == list(range(101))
        assert len(batches) == 13
    first, again, later, other = (
        epoch_batches(examples, batch_size=8, seed=seed, epoch=epoch)
        for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert first == again
    assert first != later
    assert first != other


def test_the_api_knows_the_metrics_of_every_task() -> None:
    found: dict[str, set[str]] = {}
    for task in (*HEAD_TASKS.values(), *TASKS.values()):
        found.setdefault(task.name, set()).update(task.metrics)
    assert {name: set(own) for name, own in METRICS.items()} == found
