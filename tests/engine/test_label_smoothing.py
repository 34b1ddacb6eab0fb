"""Label smoothing in the loss of each task that has it, against torch; and in none that has not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from peft_engine.bases.base import Base
from peft_engine.bases.forward import hidden_states
from peft_engine.parts.batching import Batch, collate
from peft_engine.tasks.protocol import Head, HeadTask, LossSum, Record, Task
from peft_engine.tasks.table import find_task
from peft_engine.training import FeatureStore, TrainingEvent
from peft_engine.training.head_start import FrozenBase
from tests.engine.conftest import head_on
from tests.engine.task_sets import SETS
from tests.engine.test_training import CLASSIFICATION, GENERATION, job, run

SMOOTHING = 0.3
ROWS = {name: splits["train"][:12] for name, (_, splits) in SETS.items()}
ROWS["classes"] = CLASSIFICATION["train"][:12]
TASK_OF = {name: task for name, (task, _) in SETS.items()} | {"classes": "text-classification"}


class Ready:
    """A task with rows, and a head that is far from their answers."""

    def __init__(self, base: Base, name: str) -> None:
        self.records = ROWS[name]
        self.task: Task = find_task(TASK_OF[name], self.records)
        self.labels = self.task.find_labels(self.records)
        examples = self.task.encode(base, self.records, labels=self.labels, max_length=48)
        assert isinstance(self.task, HeadTask)
        frozen = FrozenBase(base, FeatureStore(), lambda: None)
        fitted = self.task.first_head(frozen, examples, labels=self.labels)
        generator = torch.Generator().manual_seed(0)
        tensors = {
            key: 2 * torch.randn(tensor.shape, generator=generator)
            for key, tensor in fitted.tensors.items()
        }
        self.head = head_on(base, Head(fitted.spec, tensors, fitted.labels))
        self.base = base
        self.batch: Batch = collate(examples, pad_id=base.text.pad_id, device=base.device)
        with torch.no_grad():
            self.hidden = hidden_states(base, self.batch)
            features = self.task.features(self.head.spec, self.hidden, self.batch)
            self.logits: Tensor = self.task.logits(self.head, features)

    def loss(self, smoothing: float, weights: Tensor | None = None) -> LossSum:
        with torch.no_grad():
            return self.task.loss(
                self.base,
                self.head,
                self.hidden,
                self.batch,
                label_smoothing=smoothing,
                class_weights=weights,
            )

    def classes(self, name: Callable[[Record], list[str]]) -> Tensor:
        """Numbers of the classes that the records name."""
        assert self.labels is not None
        numbers = [self.labels.index(own) for record in self.records for own in name(record)]
        return torch.tensor(numbers, device=self.base.device)


EXCLUSIVE: dict[str, Callable[[Record], list[str]]] = {
    "classes": lambda record: [record["label"]],
    "relation": lambda record: [record["label"]],
    "tags": lambda record: list(record["tags"]),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", EXCLUSIVE)
def test_of_exclusive_classes_it_is_torchs(name: str, bert: Base, *, weighted: bool) -> None:
    ready = Ready(bert, name)
    targets = ready.classes(EXCLUSIVE[name])
    assert len(targets) == len(ready.logits)
    own = torch.arange(1.0, 1 + ready.logits.shape[1], device=bert.device)
    weights = own if weighted else None
    found = ready.loss(SMOOTHING, weights)
    expected = cross_entropy(ready.logits, targets, weight=weights, label_smoothing=SMOOTHING)
    assert float(found.total / found.count) == pytest.approx(float(expected), rel=1e-5)
    assert float(found.total) != pytest.approx(float(ready.loss(0.0, weights).total), rel=0.01)


def test_of_choices_it_is_torchs_over_those_of_each_question(bert: Base) -> None:
    ready = Ready(bert, "choice")
    sizes = [len(record["choices"]) for record in ready.records]
    assert len(set(sizes)) == 2
    expected = 0.0
    each = torch.split(ready.logits.squeeze(-1), sizes)
    for record, scores in zip(ready.records, each, strict=True):
        answer = torch.tensor(record["answer"], device=bert.device)
        expected += float(cross_entropy(scores, answer, label_smoothing=SMOOTHING))
    found = ready.loss(SMOOTHING)
    assert found.count == len(sizes)
    assert float(found.total) == pytest.approx(expected, rel=1e-5)
    assert float(found.total) != pytest.approx(float(ready.loss(0.0).total), rel=0.01)


@pytest.mark.parametrize("weight", [1.0, 4.0])
def test_of_several_labels_it_moves_targets_towards_one_half(weight: float, bert: Base) -> None:
    ready = Ready(bert, "multi-label")
    labels = ready.labels or ()
    given = [[own in record["labels"] for own in labels] for record in ready.records]
    wanted = torch.tensor(given, device=bert.device)  # (B, C)
    share = torch.where(wanted, 1 - SMOOTHING / 2, SMOOTHING / 2)
    losses = -weight * share * logsigmoid(ready.logits) - (1 - share) * logsigmoid(-ready.logits)
    found = ready.loss(SMOOTHING, torch.full((len(labels),), weight, device=bert.device))
    assert found.count == wanted.numel()
    assert float(found.total) == pytest.approx(float(losses.sum()), rel=1e-5)


@pytest.mark.parametrize("name", ["question", "regression", "similarity"])
def test_tasks_without_classes_have_none(name: str, bert: Base) -> None:
    ready = Ready(bert, name)
    assert float(ready.loss(SMOOTHING).total) == float(ready.loss(0.0).total)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_job_on_texts_learns_smoothed_tokens_and_is_measured_by_plain_ones(
    family: str, request: pytest.FixtureRequest
) -> None:
    """The first step sees the untuned base, whose logits transformers gives for all tokens."""
    base: Base = request.getfixturevalue(family)
    records = GENERATION["train"][:8]
    settings: dict[str, Any] = {"batch_size": 8, "max_steps": 1, "eval_generate_rows": 0}
    spec = job("text-generation", method="ia3", label_smoothing=SMOOTHING, **settings)
    told: list[TrainingEvent] = []
    metrics = run(base, spec, {"train": records, "test": records}, events=told).metrics["test"]
    (step,) = (event.data for event in told if event.kind == "progress")
    examples = find_task("text-generation", records).encode(
        base, records, labels=None, max_length=40
    )
    batch = collate(examples, pad_id=base.text.pad_id, device=base.device)
    ids = batch.input_ids if batch.decoder_ids is None else batch.decoder_ids  # (B, T)
    decoder = {} if batch.decoder_ids is None else {"decoder_input_ids": batch.decoder_ids}
    targets = torch.full_like(ids, -100)
    for row, learned in enumerate(batch.targets):
        for place in (place for place, own in enumerate(learned) if own):
            targets[row, place] = ids[row, place]
    with torch.no_grad():
        logits = base.model(input_ids=batch.input_ids, attention_mask=batch.mask, **decoder).logits
    plain, smoothed = (
        float(
            cross_entropy(
                logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), label_smoothing=share
            )
        )
        for share in (0.0, SMOOTHING)
    )
    assert step["loss"] == pytest.approx(smoothed, rel=1e-4)
    assert metrics["before"]["loss"] == pytest.approx(plain, rel=1e-4)
    assert smoothed != pytest.approx(plain, rel=1e-3)
