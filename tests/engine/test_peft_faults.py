"""Faults of PEFT 0.21 that this engine exists to be without, each asked of both.

The part on PEFT shows that the check can fail. When a later version repairs a fault, drop that
part. Faults whose check stands elsewhere, since it is a promise of its own:

- mixed rows of every method equal single ones: ``test_methods``, and of every task:
  ``test_task_matrix``
- what is not stored is answered 404 before any forward: ``tests/service/app/test_predictions``
- a second thread is refused, by the router alone: ``test_router``
"""

import gc
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    BeftConfig,
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PeftModel,
    ShiraConfig,
    VeraConfig,
    get_peft_model,
)
from peft.utils.hotswap import hotswap_adapter
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
)

from peft_engine.bases.base import Base, load_base
from peft_engine.configs import methods as ours
from peft_engine.delta import Delta, check_delta, load_delta, save_delta
from peft_engine.errors import ConfigError, PlanError, RowError
from peft_engine.methods.table import METHODS
from peft_engine.parts.sites import linear_sites
from peft_engine.plan import Actor, Plan
from peft_engine.router import Router
from peft_engine.serving import Engine, Row, prepare_row
from peft_engine.training import TrainingEvent
from tests.engine.conftest import DEVICE, make_delta, random_ids
from tests.engine.method_table import hidden, make_actor, make_trunk
from tests.engine.task_sets import SETS
from tests.engine.test_training import job, run
from tests.tiny_bases import write_tiny_bert

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

ATOL = 1e-5
TARGETS = ["query", "value"]
ON_ONE_DEVICE = pytest.mark.skipif(DEVICE.type != "cpu", reason="the peers are built on the CPU")


def shaken(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Every trained or loaded tensor of a peer, far from its start value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(
                own in name for own in ("lora_", "ia3_", "ln_tuning_", "shira_", "vera_", "beft_")
            ):
                weight.add_(0.5 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def peers(trunk: nn.Module, config: Callable[[], Any]) -> Any:
    """``alice``, active, and ``bob`` in PEFT."""
    model = get_peft_model(trunk, config(), adapter_name="alice")
    model.add_adapter("bob", config())
    return shaken(model)


def peer_hidden(model: Any, ids: Tensor, **options: Any) -> Tensor:
    found: Tensor = model(input_ids=ids, **options).last_hidden_state
    return found


# ---- whose answer it is ----

KINDS: dict[str, tuple[Callable[[], Any], ours.MethodConfig]] = {
    "ia3": (
        lambda: IA3Config(target_modules=["key", "value"], feedforward_modules=[]),
        ours.Ia3Config(),
    ),
    "norm": (lambda: LNTuningConfig(target_modules=["LayerNorm"]), ours.NormConfig()),
    "mask": (
        lambda: ShiraConfig(r=2, target_modules=TARGETS),
        ours.MaskConfig(selection="random", density=0.05),
    ),
    "bias": (lambda: BeftConfig(target_modules=TARGETS), ours.BitfitConfig()),
    "vera": (lambda: VeraConfig(r=4, target_modules=TARGETS), ours.LoraConfig(r=4, freeze_a=True)),
}


@ON_ONE_DEVICE
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_another_tenants_answer_for_methods_other_than_lora(kind: str) -> None:
    theirs, config = KINDS[kind]
    ids = random_ids(1, 6)
    model = peers(make_trunk("bert"), theirs)
    alice = peer_hidden(model, ids)
    model.set_adapter("bob")
    bob = peer_hidden(model, ids)
    model.set_adapter("alice")
    assert not torch.allclose(alice, bob, atol=1e-3)
    assert torch.equal(peer_hidden(model, ids, adapter_names=["bob"]), alice)  # the fault

    trunk = make_trunk("bert")
    router = Router(trunk)
    first, second = (make_actor(trunk, (config,), seed=s, strength=0.3) for s in (1, 2))
    found = hidden(trunk, router, ids.expand(2, -1), [first, second])
    for place, actor in enumerate((first, second)):
        assert torch.allclose(found[place], hidden(trunk, router, ids, [actor])[0], atol=ATOL)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


@ON_ONE_DEVICE
@torch.no_grad()
def test_an_unknown_adapter_is_accepted(bert: Base) -> None:
    """Here rows carry the delta itself: there is no name to get wrong, nor a name that passes."""
    ids = random_ids(1, 6)
    model = peers(make_trunk("bert"), KINDS["ia3"][0])
    assert torch.equal(peer_hidden(model, ids, adapter_names=["nobody"]), peer_hidden(model, ids))

    stranger = make_delta(bert, seed=1)
    nowhere = {f"nowhere.{name}": tensor for name, tensor in stranger.tensors.items()}
    router = Router(bert.trunk)
    seen: list[Any] = []
    handle = bert.trunk.register_forward_pre_hook(lambda *args: seen.append(args))
    unknown = Actor.of(Delta.of(nowhere, stranger.manifest))
    with pytest.raises(AttributeError, match="nowhere"), router.use(Plan.build([unknown])):
        bert.trunk(input_ids=ids)
    other = stranger.manifest.model_copy(update={"base_fingerprint": "sha256:" + "0" * 64})
    with pytest.raises(RowError, match="another base"):
        prepare_row(bert, Row(None, "my card", Delta.of(stranger.tensors, other)))
    handle.remove()
    assert not seen  # both before the forward
    with router.use(Plan.build([None])):
        pass


@ON_ONE_DEVICE
@torch.no_grad()
def test_a_failed_request_answers_the_next_one(bert: Base) -> None:
    """PEFT 3475: hooks of a failed mixed batch stay, and the next caller gets that adapter."""
    ids = random_ids(1, 6)
    model = peers(make_trunk("bert"), lambda: LoraConfig(r=4, target_modules=TARGETS))
    alice = peer_hidden(model, ids)
    bob = peer_hidden(model, ids, adapter_names=["bob"])
    with pytest.raises(IndexError):
        peer_hidden(model, ids + 10_000, adapter_names=["bob"])
    assert torch.allclose(peer_hidden(model, ids), bob)  # the fault: alice was asked
    assert not torch.allclose(alice, bob, atol=1e-3)

    engine = Engine(bert)
    delta = make_delta(bert, seed=1, labels=("no", "yes"))
    row = prepare_row(bert, Row(None, "where is my card", delta))
    before = bert.trunk(input_ids=ids).last_hidden_state
    (answer,) = engine.predict([row])
    handle = bert.trunk.encoder.layer[1].register_forward_pre_hook(_fail)  # type: ignore[union-attr,index]
    with pytest.raises(MemoryError):
        engine.predict([row])
    handle.remove()
    assert torch.equal(bert.trunk(input_ids=ids).last_hidden_state, before)
    assert engine.predict([row])[0] == answer


def _fail(*_: Any) -> None:
    raise MemoryError("as on a full device")


@ON_ONE_DEVICE
def test_two_threads_get_each_others_answers() -> None:
    """Bob's forward begins while Alice's is under way; nothing is left to luck."""
    ids = random_ids(1, 6)
    model = peers(make_trunk("bert"), lambda: LoraConfig(r=4, target_modules=TARGETS))
    with torch.no_grad():
        bob = peer_hidden(model, ids, adapter_names=["bob"])
    found = _cross(
        model.base_model.model.embeddings, lambda n: peer_hidden(model, ids, adapter_names=[n])
    )
    assert torch.allclose(found["alice"], bob)  # the fault

    trunk = make_trunk("bert")
    router = Router(trunk)
    actors = {
        name: make_actor(trunk, (ours.LoraConfig(r=4),), seed=seed, strength=0.3)
        for seed, name in enumerate(("alice", "bob"))
    }
    with torch.no_grad():
        alice = hidden(trunk, router, ids, [actors["alice"]])
    found = _cross(trunk.embeddings, lambda name: hidden(trunk, router, ids, [actors[name]]))  # type: ignore[arg-type]
    assert torch.equal(found["alice"], alice)
    assert isinstance(found["bob"], PlanError)
    assert found["bob"].code == "router_busy"


def _cross(embeddings: nn.Module, ask: Callable[[str], Tensor]) -> dict[str, Any]:
    """Alice waits behind the embeddings until Bob is there or refused, Bob until she is done."""
    found: dict[str, Any] = {}
    inside = {name: threading.Event() for name in ("alice", "bob")}
    done = threading.Event()

    def wait(*_: Any) -> None:
        name = threading.current_thread().name
        inside[name].set()
        assert (inside["bob"] if name == "alice" else done).wait(timeout=30)

    def run_as(name: str) -> None:
        try:
            with torch.no_grad():
                found[name] = ask(name)
        except PlanError as error:
            found[name] = error
        finally:
            inside[name].set()
            if name == "alice":
                done.set()

    handle = embeddings.register_forward_hook(wait)
    threads = [threading.Thread(target=run_as, args=(name,), name=name) for name in inside]
    threads[0].start()
    assert inside["alice"].wait(timeout=30)
    threads[1].start()
    for thread in threads:
        thread.join()
    handle.remove()
    return found


# ---- what stands beside it ----


@ON_ONE_DEVICE
@torch.no_grad()
def test_a_hot_swap_zeroes_a_name_that_shares_a_prefix(bert: Base, tmp_path: Path) -> None:
    """PEFT 3780: the names to fill are found by substring."""
    ids = random_ids(1, 6)
    config = LoraConfig(r=4, target_modules=TARGETS)
    model: Any = get_peft_model(make_trunk("bert"), config, adapter_name="mail")
    model.add_adapter("mail_de", LoraConfig(r=4, target_modules=TARGETS))
    shaken(model).save_pretrained(tmp_path, selected_adapters=["mail"])
    model.set_adapter("mail_de")
    before = peer_hidden(model, ids)
    model.set_adapter("mail")
    hotswap_adapter(model, str(tmp_path / "mail"), adapter_name="mail")
    model.set_adapter("mail_de")
    assert not torch.allclose(peer_hidden(model, ids), before, atol=1e-3)  # the fault

    engine = Engine(bert)
    deltas = [make_delta(bert, seed=seed, labels=("no", "yes")) for seed in (1, 2, 3)]
    old, kept, new = (prepare_row(bert, Row(None, "where is my card", d)) for d in deltas)
    first, second = engine.predict([old, kept])
    engine.forget(deltas[0].digest)
    swapped, same = engine.predict([new, kept])
    assert same == second
    assert swapped != first
    assert all(Delta.of(d.tensors, d.manifest).digest == d.digest for d in deltas)


@ON_ONE_DEVICE
def test_loading_slows_with_the_number_of_loaded_adapters(bert: Base) -> None:
    """Calls of Python functions are counted, not seconds."""
    content = save_delta(make_delta(bert, seed=1, labels=("no", "yes")))
    engine = Engine(bert)
    modules, hooks = len(list(bert.trunk.modules())), _hooks_of(bert.trunk)

    def load_and_answer() -> None:
        delta = load_delta(content)
        check_delta(
            delta, bert.trunk, fingerprint=bert.fingerprint, template_digest=bert.template_digest
        )
        engine.forget(delta.digest)
        engine.predict([prepare_row(bert, Row(None, "where is my card", delta))])

    load_and_answer()  # fills what is kept for good
    hooks = _hooks_of(bert.trunk)
    alone = _count_calls(load_and_answer)
    for seed in range(100, 140):
        other = make_delta(bert, seed=seed, labels=("no", "yes"))
        engine.predict([prepare_row(bert, Row(None, "where is my card", other))])
    assert _count_calls(load_and_answer) == alone
    assert len(list(bert.trunk.modules())) == modules
    assert _hooks_of(bert.trunk) == hooks

    model: Any = get_peft_model(make_trunk("bert"), LoraConfig(r=2, target_modules=TARGETS))

    def add() -> None:
        name = f"tenant{len(model.peft_config)}"
        model.add_adapter(name, LoraConfig(r=2, target_modules=TARGETS))

    add()
    first = _count_calls(add)
    for _ in range(8):
        add()
    assert _count_calls(add) > 1.2 * first  # the fault


def _hooks_of(trunk: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in trunk.modules())


def _count_calls(act: Callable[[], None]) -> int:
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    gc.collect()
    gc.disable()
    previous = sys.getprofile()
    sys.setprofile(count)
    try:
        act()
    finally:
        sys.setprofile(previous)
        gc.enable()
    return calls


# ---- heads ----


def tiny(**options: Any) -> BertConfig:
    return BertConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=32,
        **options,
    )


def tiny_distilbert() -> DistilBertConfig:
    return DistilBertConfig(
        vocab_size=40, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=48
    )


HEADS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "token classification": (lambda: BertForTokenClassification(tiny()), "TOKEN_CLS"),
    "question answering": (lambda: BertForQuestionAnswering(tiny()), "QUESTION_ANS"),
    "distilbert": (lambda: DistilBertForSequenceClassification(tiny_distilbert()), "SEQ_CLS"),
}


@ON_ONE_DEVICE
@pytest.mark.parametrize("kind", HEADS)
def test_all_linears_with_a_head_do_not_start_in_peft(kind: str) -> None:
    """PEFT 1485 and 2027: the head is wrapped twice. Heads are no part of a trunk here."""
    make, task_type = HEADS[kind]
    with pytest.raises(TypeError, match="modules_to_save"):
        get_peft_model(make(), LoraConfig(target_modules="all-linear", task_type=task_type))


@pytest.mark.parametrize("name", ["tags", "question", "multi-label"])
def test_all_linears_with_a_head_learn_on_distilbert(name: str, models_dir: Path) -> None:
    folder = models_dir / "distilbert"
    if not folder.exists():
        write_tiny_bert(folder)
        (folder / "model.safetensors").unlink()
        torch.manual_seed(1)
        DistilBertModel(tiny_distilbert()).save_pretrained(folder)
    base = load_base(str(folder), name="distilbert", models_dir=models_dir)
    task, splits = SETS[name]
    events: list[TrainingEvent] = []
    method = {"type": "lora", "r": 8, "alpha": 32}
    spec = job(task, method=method, epochs=4, max_length=48)
    result = run(base, spec, splits, events=events)
    assert result.delta is not None
    sites = {tensor.partition(":")[0] for tensor in result.delta.tensors}
    assert sites == {site.path for site in linear_sites(base.trunk)} | {"head"}
    losses = [e.data["value"] for e in events if e.data.get("name") == "train/loss"]
    assert min(losses[1:]) < losses[0]


@ON_ONE_DEVICE
def test_heads_of_other_widths_cannot_live_together_in_peft(bert: Base) -> None:
    """Heads of 2, 3 and 7 labels in one batch, against rows one by one: also ``test_serving``."""
    config = LoraConfig(r=2, target_modules=TARGETS, task_type="SEQ_CLS")
    model: Any = get_peft_model(BertForSequenceClassification(tiny(num_labels=2)), config, "two")
    model.add_adapter("three", LoraConfig(r=2, target_modules=TARGETS, task_type="SEQ_CLS"))
    heads = model.base_model.model.classifier.modules_to_save
    assert heads["three"].out_features == 2  # the fault: there is nowhere to say 3

    widths = (2, 3, 7)
    deltas = [make_delta(bert, seed=n, labels=tuple("abcdefg"[:n])) for n in widths]
    rows = [prepare_row(bert, Row(None, "where is my card", delta)) for delta in deltas]
    engine = Engine(bert)
    mixed = [answer.output["scores"] for answer in engine.predict(rows)]
    assert [len(scores) for scores in mixed] == list(widths)
    for row, scores in zip(rows, mixed, strict=True):
        assert engine.predict([row])[0].output["scores"] == pytest.approx(scores, abs=ATOL)


@ON_ONE_DEVICE
def test_labels_are_not_saved_with_the_head(bert: Base, tmp_path: Path) -> None:
    """PEFT 1486: who loads the adapter learns neither the labels nor their number."""
    labels = {0: "refund", 1: "delay", 2: "praise"}
    config = LoraConfig(r=2, target_modules=TARGETS, task_type="SEQ_CLS")
    model = get_peft_model(BertForSequenceClassification(tiny(id2label=labels)), config)
    model.save_pretrained(tmp_path)
    saved = json.dumps(json.loads((tmp_path / "adapter_config.json").read_text()))
    assert "refund" not in saved  # the fault
    fresh = BertForSequenceClassification(tiny())
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(fresh, tmp_path)

    delta = make_delta(bert, seed=1, labels=tuple(labels.values()))
    torch.manual_seed(99)
    found = load_delta(save_delta(delta), device=bert.device)
    assert found.manifest.labels == ("refund", "delay", "praise")
    assert torch.equal(found.head["weight"], delta.head["weight"])
    rows = [prepare_row(bert, Row(None, "where is my card", d)) for d in (delta, found)]
    first, second = Engine(bert).predict(rows)
    assert first.output == second.output
    assert set(first.output["scores"]) == set(labels.values())


# ---- in silence ----


@ON_ONE_DEVICE
def test_a_target_that_matches_nothing_is_passed_over() -> None:
    """PEFT 3533 and 3658: it is told only when no target matches at all."""
    trunk = make_trunk("bert")
    wished = ["query", "valeu"]
    model = get_peft_model(make_trunk("bert"), LoraConfig(r=2, target_modules=wished))
    names = [name for name, _ in model.named_parameters() if "lora_A" in name]
    assert len(names) == 2  # the fault: half of what was asked for
    assert all("query" in name for name in names)
    for config in (
        ours.LoraConfig(targets=tuple(wished)),
        ours.MaskConfig(targets=tuple(wished)),
        ours.LoraConfig(rank_pattern={"valeu": 2}),
        ours.PrefixConfig(layers=(1, 2)),
    ):
        with pytest.raises(ConfigError) as caught:
            METHODS[config.type].sites(trunk, config)
        assert caught.value.code == "no_such_site"
