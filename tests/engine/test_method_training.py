"""Every method through the whole loop: learns, resumes exactly, is answered as it was trained."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from peft_engine.bases.base import Base
from peft_engine.configs import JobSpec
from peft_engine.configs.methods import METHOD_NAMES, MaskConfig
from peft_engine.delta import Delta, check_delta, load_delta, save_delta
from peft_engine.errors import ConfigError, DeltaError
from peft_engine.plan import Actor
from peft_engine.router import Router
from peft_engine.serving import Engine, Row, prepare_row
from peft_engine.tasks.table import TASKS
from peft_engine.training import TrainingEvent
from peft_engine.training.events import Wish
from peft_engine.training.recipes import FEW_ROW_RECIPES, RECIPES
from peft_engine.training.resolve import combine_recipes
from tests.engine.conftest import make_delta, random_ids
from tests.engine.method_table import hidden
from tests.engine.test_training import CLASSIFICATION, GENERATION, Shelf, Splits, job, run

# A method as a user asks for it, and a rate at which it learns a few rows by heart.
METHODS: dict[str, tuple[Any, float]] = {
    "lora": ("lora", 0.01),
    "dora": ({"type": "lora", "r": 4, "dora": True, "dropout": 0.1}, 0.01),
    "lora+": ({"type": "lora", "r": 4, "b_learning_rate_ratio": 8}, 0.003),
    "lora-fa": ({"type": "lora", "r": 4, "freeze_a": True}, 0.02),
    "houlsby": ({"type": "bottleneck", "variant": "houlsby", "size": 8}, 0.02),
    "pfeiffer": ({"type": "bottleneck", "variant": "pfeiffer", "size": 8}, 0.02),
    "parallel": ({"type": "bottleneck", "variant": "parallel", "scaling": "learned"}, 0.01),
    "bitfit": ("bitfit", 0.03),
    "ia3": ("ia3", 0.1),
    "norm": ("norm", 0.05),
    "mask random": ({"type": "mask", "selection": "random", "density": 0.05}, 0.02),
    "mask magnitude": ({"type": "mask", "selection": "magnitude", "density": 0.05}, 0.02),
    "mask fisher": ({"type": "mask", "selection": "fisher", "density": 0.05, "samples": 9}, 0.02),
    "mask gradient": (
        {"type": "mask", "selection": "gradient", "density": 0.1, "pattern": "neuron"},
        0.02,
    ),
    "prefix": ({"type": "prefix", "length": 6}, 0.03),
    "classic prefix": ({"type": "prefix", "length": 4, "gate": "none"}, 0.03),
    "full": ("full", 0.003),
    "last layer": ({"type": "bitfit", "layers": {"last": 1}}, 0.03),
    "lora + bitfit": (["lora", "bitfit"], 0.01),
    "bottleneck + mask": (
        ["bottleneck", {"type": "mask", "selection": "fisher", "density": 0.02, "samples": 8}],
        0.02,
    ),
}


def base_and_rows(family: str, request: pytest.FixtureRequest) -> tuple[Base, str, Splits]:
    base: Base = request.getfixturevalue(family)
    if family == "bert":
        return base, "text-classification", CLASSIFICATION
    return base, "text-generation", GENERATION


def spec_of(name: str, task: str, **training: Any) -> JobSpec:
    method, rate = METHODS[name]
    settings = {"learning_rate": rate, "epochs": 8, "eval_generate_rows": 0} | training
    return job(task, method=method, **settings)


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("name", METHODS)
def test_it_learns_is_stored_and_answers_in_company(
    name: str, family: str, request: pytest.FixtureRequest
) -> None:
    base, task, rows = base_and_rows(family, request)
    before = {n: w.clone() for n, w in base.model.state_dict().items()}
    result = run(base, spec_of(name, task), rows)
    delta = result.delta
    assert delta is not None
    assert all(torch.equal(w, before[n]) for n, w in base.model.state_dict().items())
    test = result.metrics["test"]
    floor = test["frozen_head"] if task == "text-classification" else test["before"]
    assert test["after"]["loss"] < 0.95 * floor["loss"]
    assert delta.parameters == result.trainable_parameters or name == "lora-fa"

    torch.manual_seed(99)  # another seed than the one that saved
    found = load_delta(save_delta(delta), device=base.device)
    assert found.digest == delta.digest
    check_delta(
        found, base.trunk, fingerprint=base.fingerprint, template_digest=base.template_digest
    )
    stranger = make_delta(base, seed=3, labels=("a", "b", "c") if family == "bert" else None)
    _assert_answers_alone_and_in_company(base, found, stranger)


def _assert_answers_alone_and_in_company(base: Base, own: Delta, stranger: Delta) -> None:
    text = "where is my card" if base.architecture == "encoder" else "say 1"
    options = {} if base.architecture == "encoder" else {"max_new_tokens": 6}
    rows = [
        prepare_row(base, Row(None, text, delta, options))
        for delta in (stranger, own, None, own, stranger)
    ]
    together = Engine(base).predict(rows)
    for row, mixed in zip(rows, together, strict=True):
        (alone,) = Engine(base).predict([row])
        scores = mixed.output.get("scores")
        if scores is not None:
            assert alone.output["scores"] == pytest.approx(scores, abs=1e-5)
        elif "text" in mixed.output:
            assert alone.output == mixed.output
    assert together[1].output != together[0].output


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("name", METHODS)
def test_a_drained_job_goes_on_to_the_same_bytes(
    name: str, family: str, request: pytest.FixtureRequest
) -> None:
    base, task, rows = base_and_rows(family, request)
    spec = spec_of(name, task, epochs=2)
    undisturbed = run(base, spec, rows)
    shelf, events = Shelf(), list[TrainingEvent]()

    def drain() -> Wish | None:
        return "drain" if sum(event.kind == "progress" for event in events) >= 3 else None

    assert run(base, spec, rows, control=drain, shelf=shelf, events=events).outcome == "drained"
    resumed = run(base, spec, rows, shelf=shelf)
    assert resumed.delta is not None
    assert undisturbed.delta is not None
    assert resumed.delta.digest == undisturbed.delta.digest


def test_a_resumed_mask_keeps_the_choice_of_the_first_attempt(bert: Base) -> None:
    """The choice is part of the checkpoint: another machine might round to another one."""
    spec = spec_of("mask fisher", "text-classification", epochs=2)
    shelf, events = Shelf(), list[TrainingEvent]()

    def drain() -> Wish | None:
        return "drain" if sum(event.kind == "progress" for event in events) >= 3 else None

    run(bert, spec, CLASSIFICATION, control=drain, shelf=shelf, events=events)
    whole = run(bert, spec, CLASSIFICATION).delta
    _, _, stored = shelf.kept[-1]
    assert whole is not None
    assert stored is not None
    chosen = {n for n in whole.tensors if n.endswith("mask.indices")}
    assert chosen
    assert all(torch.equal(whole.tensors[name], stored.tensors[name]) for name in chosen)


def test_fisher_and_gradient_choose_by_the_data(bert: Base) -> None:
    """The entries with the largest scores, computed here by autograd on a copy of the base."""
    import copy

    from peft_engine.training import NoCheckpoints, train

    method = {"type": "mask", "selection": "gradient", "density": 0.02, "samples": 48}
    spec = job(method=method, max_steps=1, warmup_ratio=0)
    result = train(
        bert,
        spec,
        CLASSIFICATION,
        control=lambda: None,
        emit=lambda _: None,
        checkpoints=NoCheckpoints(),
    )
    assert result.delta is not None
    path = "encoder.layer.1.output.dense"
    chosen = result.delta.tensors[f"{path}:mask.indices"].long()

    from peft_engine.training.head_start import FeatureStore
    from peft_engine.training.prepare import prepare

    job_ready = prepare(
        bert,
        spec,
        CLASSIFICATION,
        router=Router(bert.trunk),
        features=FeatureStore(),
        check=lambda: None,
        emit=lambda _: None,
    )
    trunk = copy.deepcopy(bert.trunk)
    weight = trunk.get_submodule(path).weight
    weight.requires_grad_()
    total = torch.zeros_like(weight)
    for example in job_ready.splits["train"].examples:
        from peft_engine.parts.batching import collate

        batch = collate([example], pad_id=bert.text.pad_id, device=bert.device)
        out = trunk(input_ids=batch.input_ids, attention_mask=batch.mask).last_hidden_state
        loss = job_ready.task.loss(
            bert, job_ready.trainable.head(), out, batch, label_smoothing=0.0
        )
        (gradient,) = torch.autograd.grad(loss.total, [weight])
        total += gradient
    best = total.abs().view(-1).topk(len(chosen)).indices.sort().values
    assert len(set(best.tolist()) ^ set(chosen.tolist())) <= 2  # ties within rounding


def test_head_only_learns_on_a_frozen_base_and_needs_a_head(bert: Base, llama: Base) -> None:
    result = run(bert, job(method="head-only", epochs=2), CLASSIFICATION)
    assert result.delta is not None
    assert {name.partition(":")[0] for name in result.delta.tensors} == {"head"}
    with pytest.raises(ConfigError, match="has no head") as caught:
        run(llama, job("text-generation", method="head-only"), GENERATION)
    assert caught.value.param == "method"


def test_frozen_tensors_keep_their_start_values(bert: Base) -> None:
    short, longer = (
        run(bert, spec_of("lora-fa", "text-classification", epochs=epochs), CLASSIFICATION).delta
        for epochs in (1, 3)
    )
    assert short is not None
    assert longer is not None
    for name, tensor in short.tensors.items():
        if name.endswith("lora.A"):
            assert torch.equal(tensor, longer.tensors[name])


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (["lora", "lora"], "stands twice"),
        (["lora", "head-only"], "cannot be combined"),
        (["full", "bitfit"], "cannot be combined"),
        ("grafting", "offered: lora"),
        ({"type": "lora", "layers": {"last": 0}}, "greater than or equal to 1"),
        ({"type": "bottleneck", "scaling": -1.0}, "greater than 0"),
        ({"type": "mask", "density": 0.9}, "less than or equal to 0.5"),
        ({"type": "lora", "freeze_a": True, "b_learning_rate_ratio": 4}, "only B to learn"),
        ({"type": "ia3", "r": 4}, "Extra inputs"),
    ],
)
def test_methods_that_make_no_sense_are_refused(method: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        job(method=method)


def test_a_method_without_a_type_is_lora_still() -> None:
    (method,) = job(method={"r": 4}).method
    assert method.type == "lora"


def test_every_method_has_a_recipe_for_every_task() -> None:
    assert set(RECIPES) == {(method, task) for method in METHOD_NAMES for task in TASKS}


def test_a_combination_keeps_the_ratio_of_the_recipes() -> None:
    spec = job(method=["lora", "bitfit"], learning_rate="auto")
    task = TASKS["text-classification"]
    lora, bitfit = RECIPES["lora", task.name], RECIPES["bitfit", task.name]
    recipe = combine_recipes(spec, task)
    assert recipe.learning_rate == lora.learning_rate
    assert recipe.epochs == max(lora.epochs, bitfit.epochs)


def test_rates_of_a_combination_are_shown_resolved(bert: Base) -> None:
    events: list[TrainingEvent] = []
    spec = job(method=["lora", "bitfit"], learning_rate=0.004, max_steps=1)
    run(bert, spec, CLASSIFICATION, events=events)
    (resolved,) = (event.data["resolved"] for event in events if event.kind == "resolved")
    ratio = FEW_ROW_RECIPES["bitfit", "text-classification"].learning_rate
    ratio /= FEW_ROW_RECIPES["lora", "text-classification"].learning_rate
    assert resolved["method_learning_rates"] == {
        "lora": 0.004,
        "bitfit": pytest.approx(0.004 * ratio),
    }


@pytest.mark.parametrize("damage", ["repeated", "far", "float", "undefined", "huge"])
def test_senseless_tensors_are_refused(bert: Base, damage: str) -> None:
    config = MaskConfig(selection="random", density=0.05)
    delta = make_delta(bert, seed=1, config=config)
    name = next(n for n in delta.tensors if n.endswith("indices"))
    values = next(n for n in delta.tensors if n.endswith("values"))
    tensors = {n: t.clone() for n, t in delta.tensors.items()}
    if damage == "repeated":
        tensors[name][1] = tensors[name][0]
    elif damage == "far":
        tensors[name][-1] = 2**30
    elif damage == "float":
        tensors[name] = tensors[name].float()
    else:
        tensors[values][0] = float("nan") if damage == "undefined" else 1e35
    broken = Delta.of(tensors, delta.manifest)
    with pytest.raises(DeltaError) as caught:
        check_delta(
            broken, bert.trunk, fingerprint=bert.fingerprint, template_digest=bert.template_digest
        )
    assert caught.value.code == "delta_corrupt"


def test_a_list_of_methods_acts_in_the_fixed_order_whatever_the_list_says(bert: Base) -> None:
    from peft_engine.configs.methods import BitfitConfig, Ia3Config

    first = make_delta(bert, seed=1, config=(Ia3Config(), BitfitConfig()))
    turned = first.manifest.model_copy(update={"methods": first.manifest.methods[::-1]})
    second = Delta.of(first.tensors, turned)
    ids = random_ids(2, 5)
    router = Router(bert.trunk)
    with torch.no_grad():
        found = [hidden(bert.trunk, router, ids, [Actor.of(d)] * 2) for d in (first, second)]
    assert torch.equal(*found)
