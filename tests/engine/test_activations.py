"""Activations that are kept from epoch to epoch or computed twice: the same job, the same bytes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import ElectraConfig, ElectraModel, MPNetConfig, MPNetModel

from peft_engine.bases.base import Base
from peft_engine.bases.forward import hidden_states
from peft_engine.bases.layers import all_layers, layer_stack, recomputing
from peft_engine.configs import JobSpec
from peft_engine.configs.methods import FullConfig, LastLayers, LoraConfig
from peft_engine.errors import BaseModelError, ConfigError
from peft_engine.parts.batching import Batch, Example, TokenRow, collate
from peft_engine.parts.dropout import Dropout
from peft_engine.plan import Actor, Plan
from peft_engine.router import Router
from peft_engine.training import TrainingEvent, TrainingResult, activations
from peft_engine.training.events import Wish
from peft_engine.training.frozen_layers import FrozenLayers
from tests.engine.conftest import DEVICE
from tests.engine.method_table import make_actor, make_trunk, trained_tensors
from tests.engine.test_training import CLASSIFICATION, GENERATION, Shelf, Splits, job, run

WITHOUT_TEST: Mapping[str, Splits] = {
    "text-classification": {**CLASSIFICATION, "test": []},
    "text-generation": {**GENERATION, "test": []},
}
LAST: dict[str, Any] = {"type": "lora", "r": 4, "dropout": 0.2, "layers": {"last": 1}}
CAUSAL = ("llama", "gpt2")


def trunk_of(family: str) -> nn.Module:
    small = {"vocab_size": 40, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
    small |= {"intermediate_size": 48, "max_position_embeddings": 32}
    torch.manual_seed(3)
    if family == "mpnet":
        trunk: nn.Module = MPNetModel(MPNetConfig(**small), add_pooling_layer=False)
    elif family == "electra":
        trunk = ElectraModel(ElectraConfig(**small, embedding_size=16))
    else:
        return make_trunk(family)
    return trunk.requires_grad_(False).eval().to(DEVICE)


def base_of(bert: Base, family: str) -> Base:
    """A base around random weights of a family, without type ids."""
    trunk = trunk_of(family)
    architecture: Any = "causal" if family in CAUSAL else "encoder"
    info = replace(bert.info, architecture=architecture, model_type=family)
    return replace(bert, info=info, model=trunk, trunk=trunk)


def examples(lengths: Sequence[int]) -> list[Example]:
    generator = torch.Generator().manual_seed(5)
    return [
        Example((TokenRow(torch.randint(5, 40, (n,), generator=generator).tolist()),))
        for n in lengths
    ]


def batch_of(own: Sequence[Example]) -> Batch:
    return collate(own, pad_id=0, device=DEVICE)


def learn(
    base: Base, batch: Batch, actor: Actor, frozen: FrozenLayers | None
) -> tuple[Tensor, list[Tensor]]:
    """Hidden states at real tokens, and the gradients of a loss on them."""
    leaves = list(trained_tensors(actor).values())
    for leaf in leaves:
        leaf.requires_grad_()
    router = Router(base.trunk)
    start = None if frozen is None else frozen.start(batch)
    with router.use(Plan.build([actor] * batch.rows)):
        if start is None:
            hidden = hidden_states(base, batch)
        else:
            with start:
                hidden = hidden_states(base, batch)
        real = hidden[batch.mask.bool()]
        weights = torch.linspace(-1, 1, real.numel(), device=real.device).view_as(real)
        gradients = torch.autograd.grad((real * weights.sin()).sum(), leaves)
    return real.detach(), list(gradients)


FAMILIES = ("bert", "roberta", "distilbert", "electra", "mpnet", "llama", "gpt2")


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients_are_those_of_the_plain_forward(bert: Base, family: str) -> None:
    """To the bit in the shape in which the states were computed, to rounding in others."""
    base = base_of(bert, family)
    own = examples([9, 9, 7, 6, 4])
    frozen = FrozenLayers(base, 1, own, lambda: None)
    config = LoraConfig(r=4, alpha=8, layers=LastLayers(last=1))
    actor = make_actor(base.trunk, (config,), seed=2, strength=0.3)
    for rows, exact in ((own, True), (own[2:], False), ([own[4], own[0]], False)):
        batch = batch_of(rows)
        plain, reused = learn(base, batch, actor, None), learn(base, batch, actor, frozen)
        for one, other in zip((plain[0], *plain[1]), (reused[0], *reused[1]), strict=True):
            assert one.abs().max() > 0.01
            assert torch.equal(one, other) or not exact
            assert (one - other).norm() <= 1e-5 * one.norm()
    assert not any("forward" in vars(layer) for layer in layer_stack(base))


def test_the_last_layer_can_be_left_out_too(bert: Base, llama: Base) -> None:
    for base in (base_of(bert, "bert"), base_of(bert, "llama"), llama):
        own = examples([5, 3])
        frozen = FrozenLayers(base, 2, own, lambda: None)
        batch = batch_of(own)
        real = batch.mask.bool()
        with torch.no_grad():
            plain = hidden_states(base, batch)
            with lower_rows(base) as rows, frozen.start(batch):
                reused = hidden_states(base, batch)
        assert rows == []
        torch.testing.assert_close(reused[real], plain[real])


def test_bases_whose_layers_hand_on_more_are_refused(bert: Base) -> None:
    with pytest.raises(BaseModelError, match="no single stack of layers"):
        FrozenLayers(base_of(bert, "t5"), 1, examples([4]), lambda: None)
    with pytest.raises(BaseModelError, match="hand on more than hidden states"):
        FrozenLayers(base_of(bert, "t5 encoder"), 1, examples([4]), lambda: None)


def test_bases_whose_layers_are_not_what_they_seem_are_refused(bert: Base) -> None:
    """Something beside the stack reads a layer's input: only the comparison can tell."""
    base = base_of(bert, "bert")
    first, second = layer_stack(base)
    side: list[Tensor] = []

    def read(_module: nn.Module, _args: tuple[Any, ...], y: Tensor) -> Tensor:
        total = sum(side, torch.zeros((), device=y.device))
        side.clear()
        return y + total

    inner = next(m for m in first.modules() if isinstance(m, nn.Linear))
    inner.register_forward_hook(lambda _module, _args, y: side.append(y.abs().sum()))
    second.register_forward_hook(read)
    with pytest.raises(BaseModelError, match="cannot be left out"):
        FrozenLayers(base, 1, examples([4]), lambda: None)


def test_a_failed_forward_leaves_the_layers_as_they_were(bert: Base) -> None:
    base = base_of(bert, "bert")
    own = examples([5, 3])
    frozen = FrozenLayers(base, 1, own, lambda: None)

    def fail() -> None:
        with frozen.start(batch_of(own)), recomputing(layer_stack(base), torch.Generator(DEVICE)):
            assert all("forward" in vars(layer) for layer in layer_stack(base))
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert not any("forward" in vars(layer) for layer in layer_stack(base))


# ---- jobs -------------------------------------------------------------------------------------


def resolved_of(events: Sequence[TrainingEvent]) -> dict[str, Any]:
    (found,) = [e.data["resolved"] for e in events if e.kind == "resolved"]
    return dict(found)


def digest_of(result: TrainingResult) -> str:
    assert result.delta is not None
    return result.delta.digest


@contextmanager
def lower_rows(base: Base) -> Iterator[list[int]]:
    """Rows of each forward of the lowest layer."""
    rows: list[int] = []
    inner = next(m for m in layer_stack(base)[0].modules() if isinstance(m, nn.Linear))
    handle = inner.register_forward_hook(lambda _module, _args, y: rows.append(y.shape[0]))
    try:
        yield rows
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("task", "method"),
    [
        ("text-classification", LAST),
        ("text-classification", {"type": "head-only"}),
        ("text-generation", LAST),
    ],
    ids=["classification", "head only", "generation"],
)
def test_lower_layers_are_computed_once_and_nothing_else_changes(
    bert: Base, llama: Base, task: str, method: dict[str, Any]
) -> None:
    base = bert if task == "text-classification" else llama
    splits = WITHOUT_TEST[task]
    rows, deltas = {}, {}
    for reuse in (False, True):
        spec = job(task, method=method, reuse_frozen_layers=reuse, epochs=5)
        with lower_rows(base) as forwards:
            deltas[reuse] = run(base, spec, splits).delta
        rows[reuse] = sum(forwards)
    # once for each of the different rows, and 16 rows at most for the proof
    passes = rows[False] / (len(splits["train"]) + len(splits["validation"]))
    assert passes > 5
    unique = {str(row) for name in ("train", "validation") for row in splits[name]}
    # the plain base: features of the head's start, and of validation for floor and baselines
    frozen_features = 0
    if task == "text-classification":
        frozen_features = len(splits["train"]) + 2 * len(splits["validation"])
    assert rows[True] <= len(unique) + 16 + frozen_features
    plain, reused = deltas[False], deltas[True]
    assert plain is not None
    assert reused is not None
    for name, tensor in plain.tensors.items():
        torch.testing.assert_close(reused.tensors[name], tensor, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("task", ["text-classification", "text-generation"])
def test_a_job_that_goes_on_with_nothing_kept_ends_with_the_same_bytes(
    bert: Base, llama: Base, task: str
) -> None:
    base = bert if task == "text-classification" else llama
    splits = WITHOUT_TEST[task]
    spec = job(task, method=LAST, reuse_frozen_layers=True, eval_every_steps=5)
    shelf, events = Shelf(), list[TrainingEvent]()
    whole = run(base, spec, splits, shelf=shelf, checkpoint_seconds=0, events=events)
    assert resolved_of(events)["reused_bytes"] > 0
    for kept in (shelf.kept[0], shelf.kept[len(shelf.kept) // 2], shelf.kept[-1]):
        one = Shelf()
        one.kept = [kept]
        resumed = run(base, spec, splits, shelf=one)
        assert digest_of(resumed) == digest_of(whole)
        assert resumed.metrics == whole.metrics


ALL_LAYERS = {**LAST, "layers": "all"}
ATTACK = {"type": "fgm"}


@pytest.mark.parametrize(
    ("training", "reused"),
    [
        ({"method": LAST}, True),
        ({"method": {"type": "head-only"}}, True),
        ({"method": LAST, "epochs": 1}, False),
        ({"method": LAST, "reuse_frozen_layers": False}, False),
        ({"method": LAST, "adversarial": ATTACK}, False),
        ({"method": ALL_LAYERS}, False),
        ({"method": [LAST, {"type": "norm"}]}, False),
    ],
)
def test_auto_reuses_where_it_can(bert: Base, training: dict[str, Any], reused: bool) -> None:
    events: list[TrainingEvent] = []
    splits: Splits = {"train": CLASSIFICATION["train"][:8], "validation": [], "test": []}
    run(bert, job(**({"epochs": 2} | training)), splits, events=events)
    found = resolved_of(events)
    assert found["reuse_frozen_layers"] is reused
    assert (found["reused_bytes"] > 0) is reused


@pytest.mark.parametrize(
    ("training", "limit", "reason"),
    [
        ({"method": ALL_LAYERS}, 1 << 30, "acts in the lowest layer"),
        ({"method": LAST, "adversarial": ATTACK}, 1 << 30, "moves the embeddings"),
        ({"method": LAST}, 1000, "more than 1,000"),
    ],
)
def test_reuse_that_is_not_possible_is_refused(
    bert: Base, monkeypatch: pytest.MonkeyPatch, training: dict[str, Any], limit: int, reason: str
) -> None:
    monkeypatch.setattr(activations, "REUSE_LIMIT_BYTES", limit)
    with pytest.raises(ConfigError, match=reason) as caught:
        run(bert, job(reuse_frozen_layers=True, **training), CLASSIFICATION)
    assert caught.value.code == "nothing_to_reuse"


def test_validation_rows_are_kept_only_where_they_fit_too(
    bert: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, sizes = job(method=LAST, epochs=2), []
    rows = CLASSIFICATION["train"]
    others = [{**row, "text": f"{row['text']} a"} for row in rows[:8]]
    splits: Splits = {"train": rows, "validation": others, "test": []}
    for _ in range(2):
        events: list[TrainingEvent] = []
        run(bert, spec, splits, events=events)
        sizes.append(resolved_of(events)["reused_bytes"])
        monkeypatch.setattr(activations, "REUSE_LIMIT_BYTES", sizes[0] - 1)
    assert 0 < sizes[1] < sizes[0]


# ---- layers computed twice --------------------------------------------------------------------


def saved_bytes(work: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """What the work gives, and the bytes that autograd is asked to keep for it."""
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = work()
    return found, total


@pytest.mark.parametrize("family", [*FAMILIES, "t5 encoder"])
def test_gradients_are_the_same_to_the_bit_and_less_is_kept(bert: Base, family: str) -> None:
    base = base_of(bert, family)
    batch, router = batch_of(examples([9, 7, 4])), Router(base.trunk)
    dropout = torch.Generator(DEVICE).manual_seed(7)
    config = LoraConfig(r=4, alpha=8, dropout=0.3)
    shaken = make_actor(base.trunk, (config,), seed=2, strength=0.3)
    actor = Actor(shaken.configs, shaken.sites, {"lora": Dropout(0.3, dropout)})
    leaves = list(trained_tensors(actor).values())
    for leaf in leaves:
        leaf.requires_grad_()
    found, states, kept = [], [], []
    for layers in ([], layer_stack(base)):
        dropout.manual_seed(7)
        with router.use(Plan.build([actor] * batch.rows)), recomputing(layers, dropout):
            loss, size = saved_bytes(lambda: hidden_states(base, batch)[batch.mask.bool()].sum())
            loss.backward()  # type: ignore[no-untyped-call]
        kept.append(size)
        found.append([loss.detach(), *[leaf.grad for leaf in leaves]])
        states.append(dropout.get_state())
        for leaf in leaves:
            leaf.grad = None
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert torch.equal(one, other)
    assert torch.equal(*states)
    assert kept[1] < 0.5 * kept[0]
    assert not any("forward" in vars(layer) for layer in layer_stack(base))


CHECKPOINTED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("text-classification", {}),
    ("text-classification", {"adversarial": {"type": "pgd", "steps": 2}}),
    ("text-classification", {"method": LAST, "reuse_frozen_layers": True}),
    ("text-generation", {"gradient_accumulation": 2}),
    (
        "text-generation",
        {"method": {"type": "prefix", "layers": {"last": 1}}, "reuse_frozen_layers": True},
    ),
)


@pytest.mark.parametrize(("task", "training"), CHECKPOINTED)
def test_a_checkpointed_job_ends_with_the_same_bytes(
    bert: Base, llama: Base, task: str, training: dict[str, Any]
) -> None:
    base = bert if task == "text-classification" else llama
    splits = WITHOUT_TEST[task]
    specs = [job(task, epochs=2, gradient_checkpointing=on, **training) for on in (False, True)]
    plain, checkpointed = (run(base, spec, splits) for spec in specs)
    assert digest_of(checkpointed) == digest_of(plain)
    assert checkpointed.metrics == plain.metrics
    events: list[TrainingEvent] = []

    def drain() -> Wish | None:
        return "drain" if sum(e.kind == "progress" for e in events) >= 3 else None

    shelf = Shelf()
    assert run(base, specs[1], splits, control=drain, shelf=shelf, events=events).delta is None
    assert digest_of(run(base, specs[1], splits, shelf=shelf)) == digest_of(plain)


@pytest.mark.parametrize("task", ["text-generation", "text-classification"])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_both_stacks_are_computed_twice(
    family: str, task: str, request: pytest.FixtureRequest
) -> None:
    base: Base = request.getfixturevalue(family)
    layers = all_layers(base)
    assert len(layers) == {"t5": 4, "bart": 5}[family]
    config = {"type": "lora", "r": 4, "dropout": 0.2}
    specs = [job(task, method=config, epochs=1, gradient_checkpointing=on) for on in (False, True)]
    plain, checkpointed = (run(base, spec, WITHOUT_TEST[task]) for spec in specs)
    assert digest_of(checkpointed) == digest_of(plain)
    assert checkpointed.metrics == plain.metrics
    reads = examples([9, 7, 4])
    if task == "text-generation":
        reads = [Example((replace(e.rows[0], decoder_ids=(0, 5, 6, 7)),)) for e in reads]
    actor = make_actor(base.trunk, (LoraConfig(r=4, alpha=8),), seed=2, strength=0.3)
    for leaf in trained_tensors(actor).values():
        leaf.requires_grad_()
    batch, router, dropout = batch_of(reads), Router(base.trunk), torch.Generator(DEVICE)
    kept = []
    for twice in ([], layers):
        with router.use(Plan.build([actor] * batch.rows)), recomputing(twice, dropout):
            kept.append(saved_bytes(lambda: hidden_states(base, batch).sum())[1])
    assert kept[1] < 0.5 * kept[0]


def test_auto_checkpoints_where_a_step_keeps_much(
    bert: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits: Splits = {"train": CLASSIFICATION["train"][:8], "validation": [], "test": []}
    spec: JobSpec = job(epochs=1)
    for limit, expected in ((activations.ACTIVATION_LIMIT_BYTES, False), (1000, True)):
        monkeypatch.setattr(activations, "ACTIVATION_LIMIT_BYTES", limit)
        events: list[TrainingEvent] = []
        run(bert, spec, splits, events=events)
        assert resolved_of(events)["gradient_checkpointing"] is expected


@pytest.mark.parametrize("family", ["bert", "llama", "t5", "bart"])
@pytest.mark.parametrize("writes", [False, True])
def test_the_estimate_is_above_what_a_batch_keeps(
    family: str, writes: bool, request: pytest.FixtureRequest
) -> None:
    """Of full fine-tuning, which keeps most; a decoder that nobody reads counts for nothing."""
    base: Base = request.getfixturevalue(family)
    if writes and base.architecture != "encoder-decoder":
        pytest.skip("it has no decoder of its own")
    ids = [5 + place % 10 for place in range(30)]
    rows = [TokenRow(ids, decoder_ids=ids[:20] if writes else None)] * 3
    actor = make_actor(base.trunk, (FullConfig(),), seed=2, strength=0.3)
    for leaf in trained_tensors(actor).values():
        leaf.requires_grad_()
    batch, router = batch_of([Example((row,)) for row in rows]), Router(base.trunk)
    parameters = (*base.model.parameters(), *trained_tensors(actor).values())
    values = {own.data_ptr() for own in parameters}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in values:
            kept[memory.data_ptr()] = memory.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        router.use(Plan.build([actor] * batch.rows)),
    ):
        total = hidden_states(base, batch).sum()
    assert total.requires_grad  # so that what it needs is still there
    estimate = activations.activation_bytes(base, rows, rows=batch.rows)
    assert sum(kept.values()) < estimate < 8 * sum(kept.values())


def test_equal_rows_are_counted_once_as_they_are_kept_once(bert: Base) -> None:
    spec, sizes = job(method=LAST, epochs=2), []
    for times in (1, 3):
        events: list[TrainingEvent] = []
        rows = CLASSIFICATION["train"][:8] * times
        run(bert, spec, {"train": rows, "validation": rows, "test": []}, events=events)
        sizes.append(resolved_of(events)["reused_bytes"])
    assert sizes[0] == sizes[1] > 0
