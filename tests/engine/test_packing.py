"""Packing: the same losses, gradients and bytes as padded rows, and nothing seen across rows."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM

from peft_engine.bases.base import Base, load_base
from peft_engine.bases.forward import hidden_states
from peft_engine.configs import JobSpec
from peft_engine.configs.methods import LoraConfig
from peft_engine.errors import ConfigError
from peft_engine.methods.table import METHODS
from peft_engine.parts.batching import Batch, Example, TokenRow, collate
from peft_engine.parts.packing import pack
from peft_engine.plan import Actor, Plan
from peft_engine.router import Router
from peft_engine.tasks.table import TASKS
from peft_engine.training import NoCheckpoints, TrainingEvent, TrainingResult, train
from peft_engine.training.events import Wish
from tests.engine.conftest import DEVICE, ROUNDING_FACTOR, make_delta
from tests.engine.method_table import METHOD_CASES
from tests.engine.task_sets import Splits
from tests.engine.test_training import Shelf
from tests.tiny_bases import write_tiny_llama

ROWS = [
    [5, 6, 7, 8, 9, 10, 11],
    [5, 6, 7, 8, 12],  # parts from the first after four tokens
    [5, 6, 7],  # the beginning of both
    [9, 6, 7, 8, 9, 10],  # the same tokens after another first one
    [5, 6, 7],
]
TOKENS_APART = 7 + 1 + 0 + 6 + 0
SPLITS: Splits = {
    "train": [
        {"prompt": f"say {i % 5}", "completion": "abcde"[i % 5] * (i % 3 + 1)} for i in range(30)
    ],
    "validation": [{"prompt": "say 1", "completion": "bb"}],
}


def batch_of(rows: list[list[int]], *, packed: bool, share: bool = True) -> Batch:
    examples = [Example((TokenRow(row),), [place > 0 for place in range(len(row))]) for row in rows]
    batch = collate(examples, pad_id=0, device=DEVICE)
    if not packed:
        return batch
    own = pack(rows, share=share, device=DEVICE)
    return Batch(batch.input_ids, batch.mask, None, examples, batch.tokens, packing=own)


def gradients(
    base: Base, configs: Any, *, packed: bool, share: bool = True
) -> tuple[float, Mapping[str, Tensor]]:
    """Loss and gradients of every tensor of a strong delta."""
    delta = make_delta(base, seed=3, config=configs, strength=0.1)
    leaves = {
        name: tensor.clone().requires_grad_()
        for name, tensor in delta.tensors.items()
        if tensor.is_floating_point()
    }
    sites: dict[str, dict[str, dict[str, Tensor]]] = {}
    for name, tensor in {**delta.tensors, **leaves}.items():
        path, _, rest = name.partition(":")
        method, _, short = rest.partition(".")
        sites.setdefault(path, {}).setdefault(method, {})[short] = tensor
    actor = Actor({config.type: config for config in configs}, sites, {})
    batch = batch_of(ROWS, packed=packed, share=share)
    with Router(base.trunk).use(Plan.build([actor] * batch.forward_rows)):
        loss = TASKS["text-generation"].loss(
            base, None, hidden_states(base, batch), batch, label_smoothing=0.0
        )
        loss.total.backward()  # type: ignore[no-untyped-call]
    found = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return float(loss.total.detach()) / loss.count, found


TOKEN_WISE = [
    name
    for name, configs in METHOD_CASES.items()
    if all(METHODS[config.type].treats_tokens_alone for config in configs)
]


@pytest.mark.parametrize("base_name", ["llama", "gpt2"])
@pytest.mark.parametrize("method", TOKEN_WISE)
def test_losses_and_gradients_are_those_of_padded_rows(
    base_name: str, method: str, request: pytest.FixtureRequest
) -> None:
    base: Base = request.getfixturevalue(base_name)
    padded, expected = gradients(base, METHOD_CASES[method], packed=False)
    packed, found = gradients(base, METHOD_CASES[method], packed=True)
    assert packed == pytest.approx(padded, abs=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = float(gradient.abs().max()) + 1e-3
        torch.testing.assert_close(found[name] / scale, gradient / scale, rtol=1e-5, atol=1e-5)


def test_rows_of_their_own_nodes_give_the_same_too(llama: Base) -> None:
    config = (LoraConfig(r=4, alpha=8),)
    padded, expected = gradients(llama, config, packed=False)
    packed, found = gradients(llama, config, packed=True, share=False)
    assert packed == pytest.approx(padded, abs=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def test_plain_attention_of_bf16_bases_packs_too(models_dir: Path) -> None:
    folder = write_tiny_llama(models_dir / "llama-eager")
    base = load_base(str(folder), name="llama", models_dir=models_dir, precision="bf16")
    assert base.packs
    padded, packed = (
        hidden_states(base, batch_of(ROWS, packed=packed)).float() for packed in (False, True)
    )
    for place, row in enumerate(ROWS):
        own = slice(0, len(row))
        torch.testing.assert_close(packed[place, own], padded[place, own], rtol=0.05, atol=0.1)


def test_each_common_beginning_is_one_node() -> None:
    assert pack(ROWS, share=True, device=DEVICE).input_ids.shape == (1, TOKENS_APART)
    whole = pack(ROWS, share=False, device=DEVICE)
    assert whole.input_ids[0].tolist() == [token for row in ROWS for token in row]
    assert whole.positions[0].tolist() == [place for row in ROWS for place in range(len(row))]


@pytest.mark.parametrize("share", [True, False])
def test_no_token_sees_another_row(llama: Base, *, share: bool) -> None:
    """Other rows change: tokens, order and number of nodes before them stay the same."""
    first = hidden_states(llama, batch_of(ROWS, packed=True, share=share))
    other = [[(token + 3) % 20 + 1 for token in row] for row in ROWS[1:]]
    other[0][0] = other[1][0] = other[3][0] = 4  # nothing in common with the first row
    second = hidden_states(llama, batch_of([ROWS[0], *other], packed=True, share=share))
    bound = 1e-6 * ROUNDING_FACTOR  # the whole has another height
    torch.testing.assert_close(first[0], second[0], rtol=bound, atol=bound)


def spec(**training: Any) -> JobSpec:
    method = training.pop("method", {"type": "lora", "r": 4})
    task = training.pop("task", "text-generation")
    settings = {"batch_size": 4, "learning_rate": 0.01, "max_length": 40, "epochs": 2}
    return JobSpec.model_validate(
        {
            "dataset_id": "ds",
            "base_model": "b",
            "task": task,
            "method": method,
            "training": settings | training,
        }
    )


def run(
    base: Base,
    job: JobSpec,
    told: list[TrainingEvent] | None = None,
    *,
    splits: Splits = SPLITS,
    control: Callable[[], Wish | None] = lambda: None,
    shelf: Shelf | NoCheckpoints | None = None,
    router: Router | None = None,
) -> TrainingResult:
    return train(
        base,
        job,
        splits,
        control=control,
        emit=(told if told is not None else []).append,
        checkpoints=shelf or NoCheckpoints(),
        router=router,
    )


def losses(
    base: Base, job: JobSpec, router: Router | None = None
) -> tuple[list[float], Mapping[str, Any]]:
    told: list[TrainingEvent] = []
    result = run(base, job, told, router=router)
    return [e.data["loss"] for e in told if e.kind == "progress"], result.resolved


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_packed_job_takes_the_steps_of_a_padded_one(llama: Base, optimizer: str) -> None:
    padded, _ = losses(llama, spec(packing=False, optimizer=optimizer))
    packed, resolved = losses(llama, spec(packing=True, optimizer=optimizer))
    assert resolved["packing"] is True
    # Adam divides by the root of tiny squares, so that rounding grows from step to step.
    assert packed == pytest.approx(padded, rel=2e-3 if optimizer == "adamw" else 1e-4)
    assert packed[-1] < packed[0]


@pytest.mark.parametrize(
    "setting", [{"gradient_checkpointing": True}, {"reuse_frozen_layers": True}]
)
def test_packed_rows_meet_layers_computed_twice_or_once(
    llama: Base, setting: dict[str, Any]
) -> None:
    method = {"type": "lora", "r": 4, "layers": {"last": 1}}
    padded, _ = losses(llama, spec(packing=False, method=method, optimizer="sgd"))
    packed, _ = losses(llama, spec(packing=True, method=method, optimizer="sgd", **setting))
    assert packed == pytest.approx(padded, rel=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("stop_at", [1, 5])
def test_a_packed_job_goes_on_to_the_same_bytes(llama: Base, stop_at: int, dropout: float) -> None:
    job = spec(packing=True, method={"type": "lora", "r": 4, "dropout": dropout})
    undisturbed = run(llama, job)
    shelf, told = Shelf(), list[TrainingEvent]()

    def drain() -> Wish | None:
        steps = [e.data["step"] for e in told if e.kind == "progress"]
        return "drain" if steps and steps[-1] >= stop_at else None

    assert run(llama, job, told, control=drain, shelf=shelf).outcome == "drained"
    resumed = run(llama, job, shelf=shelf)
    assert resumed.delta is not None
    assert undisturbed.delta is not None
    assert resumed.delta.digest == undisturbed.delta.digest


def test_a_packed_job_after_a_prefix_job_on_the_same_base(models_dir: Path) -> None:
    """Prefixes put a function around attention for good; packed rows still get their own."""
    folder = write_tiny_llama(models_dir / "llama-prefixed")
    base = load_base(str(folder), name="llama", models_dir=models_dir)
    router = Router(base.trunk)
    fresh = losses(base, spec(packing=True), router)[0]
    run(base, spec(method="prefix", max_steps=2), router=router)
    assert losses(base, spec(packing=True), router)[0] == fresh


def test_auto_packs_where_it_leaves_much_out(llama: Base) -> None:
    alike = run(llama, spec(max_steps=1)).resolved
    assert alike["packing"] is (DEVICE.type == "cpu")
    letters = "abcdefghijklmnopqrstuvwxyz"
    apart = [{"text": letter * 20} for letter in letters]
    assert run(llama, spec(max_steps=1), splits={"train": apart}).resolved["packing"] is False


@pytest.mark.parametrize(
    ("base_name", "wanted", "reason"),
    [
        ("bert", {"task": "text-classification"}, "no causal base"),
        ("llama", {"method": "prefix"}, "acts on attention"),
        ("llama", {"adversarial": {}}, "moves the embeddings"),
        ("windowed", {}, "cannot be given packed rows"),
    ],
)
def test_what_cannot_be_packed_is_refused_or_left(
    base_name: str, wanted: dict[str, Any], reason: str, request: pytest.FixtureRequest
) -> None:
    base: Base = request.getfixturevalue(base_name)
    splits: Splits = SPLITS
    if base_name == "bert":
        splits = {"train": [{"text": "card", "label": "a"}, {"text": "money", "label": "b"}] * 4}
    with pytest.raises(ConfigError, match=reason) as failed:
        run(base, spec(packing=True, max_steps=1, **wanted), splits=splits)
    assert failed.value.code == "packing_impossible"
    left = run(base, spec(packing="auto", max_steps=1, **wanted), splits=splits)
    assert left.resolved["packing"] is False


@pytest.fixture(scope="module")
def windowed(models_dir: Path) -> Base:
    """A causal base whose tokens look at the last few tokens only."""
    folder = write_tiny_llama(models_dir / "mistral")
    config = MistralConfig(
        vocab_size=260,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=256,
        sliding_window=8,
    )
    MistralForCausalLM(config).save_pretrained(folder)
    return load_base(str(folder), name="mistral", models_dir=models_dir)
