"""Class weights and adversarial training."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import cross_entropy

from peft_engine.bases.base import Base
from peft_engine.bases.forward import hidden_states, token_embeddings
from peft_engine.configs.training import AdversarialConfig
from peft_engine.errors import ConfigError
from peft_engine.parts.batching import collate
from peft_engine.parts.fits import fit_head
from peft_engine.tasks.protocol import Head, LossSum
from peft_engine.tasks.table import TASKS, find_task
from peft_engine.tasks.text_classification import TextClassification
from peft_engine.training import TrainingEvent
from peft_engine.training.adversarial import adversarial_backward, attack
from peft_engine.training.class_weights import resolve_class_weights
from peft_engine.training.head_start import FeatureStore, FrozenBase
from tests.engine.conftest import head_on
from tests.engine.task_sets import SETS
from tests.engine.test_training import CLASSIFICATION, GENERATION, Shelf, job, run

UNEVEN = [{"text": "card", "label": "a"}] * 6 + [{"text": "money", "label": "b"}] * 2
FGM = AdversarialConfig(type="fgm", epsilon=0.2)
STEPS: dict[str, dict[str, int]] = {"fgm": {}, "pgd": {"steps": 2}}
PGD = AdversarialConfig(type="pgd", epsilon=0.2, steps=4, step_size=0.4)


def test_balanced_weights_are_scikit_learns(bert: Base) -> None:
    task = TextClassification()
    examples = task.encode(bert, UNEVEN, labels=("a", "b", "c"), max_length=10)
    found = resolve_class_weights("balanced", task, examples, ("a", "b"))
    expected = compute_class_weight(
        "balanced", classes=np.array([0, 1]), y=[e.target for e in examples]
    )
    assert found is not None
    assert found.tolist() == pytest.approx(expected.tolist())
    absent = resolve_class_weights("balanced", task, examples, ("a", "b", "c"))
    assert absent is not None
    assert absent[2] == 1
    named = resolve_class_weights({"b": 5}, task, examples, ("a", "b"))
    assert named is not None
    assert named.tolist() == [1, 5]


def test_labels_weigh_rows_with_against_rows_without(bert: Base) -> None:
    records = [{"text": "card", "labels": ["a"]}] * 3 + [{"text": "card", "labels": ["a", "b"]}]
    task = find_task("text-classification", records)
    labels = task.find_labels(records)
    examples = task.encode(bert, records, labels=labels, max_length=10)
    found = resolve_class_weights("balanced", task, examples, labels)
    assert found is not None
    assert found.tolist() == [1, 3]  # every row has the first


def test_the_weighted_loss_is_torchs(bert: Base) -> None:
    task = TextClassification()
    examples = task.encode(bert, UNEVEN, labels=("a", "b"), max_length=10)
    frozen = FrozenBase(bert, FeatureStore(), lambda: None)
    head = head_on(bert, task.first_head(frozen, examples, labels=("a", "b")))
    batch = collate(examples, pad_id=0, device=bert.device)
    weights = torch.tensor([0.5, 3.0], device=bert.device)
    targets = torch.tensor(batch.targets, device=bert.device)
    with torch.no_grad():
        hidden = hidden_states(bert, batch)
        loss = task.loss(bert, head, hidden, batch, label_smoothing=0.1, class_weights=weights)
        logits = task.logits(head, task.features(head.spec, hidden, batch))
        expected = cross_entropy(logits, targets, weight=weights, label_smoothing=0.1)
    assert float(loss.total / loss.count) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "weights"),
    [("tags", "balanced"), ("multi-label", "balanced"), ("relation", {"eq": 4})],
)
def test_every_task_with_classes_trains_with_weights(name: str, weights: Any, bert: Base) -> None:
    task, splits = SETS[name]
    plain = run(bert, job(task, epochs=1, max_length=48), splits)
    spec = job(task, epochs=1, max_length=48, class_weights=weights)
    weighted = run(bert, spec, splits)
    assert plain.delta is not None
    assert weighted.delta is not None
    assert weighted.delta.digest != plain.delta.digest


@pytest.mark.parametrize(
    ("name", "weights", "code"),
    [
        ("regression", "balanced", "no_classes"),
        ("choice", {"a": 2}, "no_classes"),
        ("relation", {"stranger": 2}, "unknown_label"),
    ],
)
def test_weights_of_classes_that_are_not_there(
    name: str, weights: Any, code: str, bert: Base
) -> None:
    task, splits = SETS[name]
    with pytest.raises(ConfigError) as caught:
        run(bert, job(task, class_weights=weights), splits)
    assert (caught.value.code, caught.value.param) == (code, "training.class_weights")


@pytest.mark.parametrize("config", [FGM, PGD])
def test_an_attack_raises_the_loss_within_its_reach_and_leaves_padding(
    config: AdversarialConfig, any_base: Base
) -> None:
    base, task = any_base, TextClassification()
    records = [{"text": "card lost", "label": "a"}, {"text": "money " * 4, "label": "b"}]
    examples = task.encode(base, records, labels=("a", "b"), max_length=30)
    frozen = FrozenBase(base, FeatureStore(), lambda: None)
    head = head_on(base, task.first_head(frozen, examples, labels=("a", "b")))
    batch = collate(examples, pad_id=base.text.pad_id, device=base.device)

    def loss_of(hidden: torch.Tensor) -> LossSum:
        return task.loss(base, head, hidden, batch, label_smoothing=0.0)

    clean = token_embeddings(base, batch)
    moved = attack(base, batch, config, loss_of)
    with torch.no_grad():
        same = hidden_states(base, batch, embeddings=clean)
        assert torch.allclose(same, hidden_states(base, batch), atol=1e-6)
        before = float(loss_of(same).total)
        after = float(loss_of(hidden_states(base, batch, embeddings=moved)).total)
    assert after > before
    offset = moved - clean
    assert float(offset[batch.mask == 0].abs().sum()) == 0
    for row, example in enumerate(examples):
        own = clean[row, : example.tokens].norm()
        assert float(offset[row].norm() / own) <= config.epsilon * 1.0001
        if config.type == "fgm":
            assert float(offset[row].norm() / own) == pytest.approx(config.epsilon, rel=1e-4)


def test_one_step_follows_the_gradient_in_closed_form(bert: Base) -> None:
    """δ = ε ‖E‖ g / ‖g‖."""
    task = TextClassification()
    examples = task.encode(bert, UNEVEN[5:7], labels=("a", "b"), max_length=10)
    generator = torch.Generator().manual_seed(0)
    frozen = FrozenBase(bert, FeatureStore(), lambda: None)
    spec = task.first_head(frozen, examples, labels=("a", "b")).spec
    tensors = {"weight": torch.randn(2, 32, generator=generator), "bias": torch.zeros(2)}
    head = head_on(bert, Head(spec, tensors, ("a", "b")))
    batch = collate(examples, pad_id=0, device=bert.device)
    clean = token_embeddings(bert, batch).requires_grad_()
    total = task.loss(
        bert, head, hidden_states(bert, batch, embeddings=clean), batch, label_smoothing=0.0
    ).total
    (gradient,) = torch.autograd.grad(total, clean)
    norms = [rows.detach().flatten(1).norm(dim=1)[:, None, None] for rows in (clean, gradient)]
    expected = clean.detach() + FGM.epsilon * norms[0] * gradient / norms[1]
    found = attack(
        bert,
        batch,
        FGM,
        lambda hidden: task.loss(bert, head, hidden, batch, label_smoothing=0.0),
    )
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("config", [FGM, PGD])
def test_a_table_that_learns_gets_the_gradients_of_both_losses(
    config: AdversarialConfig, any_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, task = any_base, TextClassification()
    examples = task.encode(base, UNEVEN[5:7], labels=("a", "b"), max_length=10)
    frozen = FrozenBase(base, FeatureStore(), lambda: None)
    spec = task.first_head(frozen, examples, labels=("a", "b")).spec
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, base.hidden_size, generator=generator)
    head = head_on(base, Head(spec, {"weight": weight, "bias": torch.zeros(2)}, ("a", "b")))
    batch = collate(examples, pad_id=base.text.pad_id, device=base.device)
    table = base.trunk.get_input_embeddings().weight  # type: ignore[operator]

    def loss_of(hidden: torch.Tensor) -> LossSum:
        return task.loss(base, head, hidden, batch, label_smoothing=0.0)

    offset = attack(base, batch, config, loss_of) - token_embeddings(base, batch)
    monkeypatch.setattr(table, "requires_grad", True)
    monkeypatch.setattr(table, "grad", None)
    read = token_embeddings(base, batch)
    losses = [
        loss_of(hidden_states(base, batch, embeddings=embeddings)).total
        for embeddings in (read, read + offset)
    ]
    expected = torch.autograd.grad(
        (losses[0] + config.weight * losses[1]) / (1 + config.weight), table
    )
    adversarial_backward(base, batch, config, loss_of)
    assert table.grad.any()
    assert torch.allclose(
        table.grad, expected[0], atol=1e-6 * float(expected[0].abs().max()) + 1e-7
    )


@pytest.mark.parametrize("kind", ["fgm", "pgd"])
def test_the_whole_base_can_be_trained_under_attack(kind: str, bert: Base, gpt2: Base) -> None:
    attack_config = {"type": kind} | STEPS[kind]
    for base, task, splits in (
        (bert, "text-classification", CLASSIFICATION),
        (gpt2, "text-generation", GENERATION),
    ):
        own = {"max_steps": 4, "keep": "last", "adversarial": attack_config}
        spec = job(task, method={"type": "full"}, **own)
        delta = run(base, spec, splits).delta
        assert delta is not None
        (table,) = [name for name in delta.tensors if "wte" in name or "word_embeddings" in name]
        assert delta.tensors[table].any()


@pytest.mark.parametrize("kind", ["fgm", "pgd"])
def test_adversarial_training_reports_robustness_and_resumes_to_the_same_bytes(
    kind: str, bert: Base
) -> None:
    attack_config = {"type": kind, "epsilon": 0.05} | STEPS[kind]
    spec = job(epochs=8, eval_every_steps=4, adversarial=attack_config)
    whole = run(bert, spec, CLASSIFICATION)
    found = whole.metrics["test"]["robustness"]
    clean = whole.metrics["test"]
    assert found["after"]["loss"] > clean["after"]["loss"]
    assert found["before"]["loss"] > clean["frozen_head"]["loss"]
    assert found["after"]["loss"] < found["before"]["loss"]
    assert found["attack"]["type"] == kind
    shelf, events = Shelf(), list[TrainingEvent]()

    def drain() -> Any:
        return "drain" if sum(e.kind == "progress" for e in events) >= 7 else None

    run(bert, spec, CLASSIFICATION, control=drain, shelf=shelf, events=events)
    again = run(bert, spec, CLASSIFICATION, shelf=shelf)
    assert whole.delta is not None
    assert again.delta is not None
    assert again.delta.digest == whole.delta.digest
    assert again.metrics == whole.metrics


@pytest.mark.parametrize("name", list(SETS))
def test_every_task_can_be_attacked(name: str, bert: Base) -> None:
    task, splits = SETS[name]
    spec = job(task, epochs=1, max_length=48, adversarial={"type": "fgm"})
    found = run(bert, spec, splits).metrics["test"]["robustness"]
    assert (
        set(found["before"]) == set(found["after"]) >= set(find_task(task, splits["train"]).metrics)
    )


def test_generation_can_be_attacked_too(llama: Base) -> None:
    spec = job("text-generation", epochs=1, adversarial={"type": "pgd"}, eval_generate_rows=0)
    test = run(llama, spec, GENERATION).metrics["test"]
    assert test["robustness"]["before"]["loss"] > test["before"]["loss"]
    assert test["robustness"]["before_is"] == "the untuned base"


def test_every_named_task_is_offered() -> None:
    from typing import get_args

    from peft_engine.configs.model import TaskName
    from peft_engine.training.recipes import RECIPES

    assert set(get_args(TaskName)) == set(TASKS)
    assert {("lora", name) for name in TASKS} <= set(RECIPES)


def test_a_fit_can_be_interrupted() -> None:
    features, targets = torch.eye(6), torch.tensor([0, 1, 0, 1, 0, 1])
    asked = 0

    def stop_at_the_third() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fit_head(features, targets, classes=2, check=stop_at_the_third)
    assert asked == 3
