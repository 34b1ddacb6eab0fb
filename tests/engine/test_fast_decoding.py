"""The fast path of llama-like bases computes what the base's own modules compute."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from peft_engine.bases.base import Base, load_base
from peft_engine.configs.methods import BitfitConfig, LoraConfig
from peft_engine.decoding.fast import DecodingForward
from peft_engine.decoding.forward import GeneralForward, Part
from peft_engine.decoding.llama_forward import LlamaForward
from peft_engine.decoding.lora_stack import LoraStack
from peft_engine.decoding.products import PRODUCTS, Kernel, usable
from peft_engine.decoding.slots import KeyValueSlots
from peft_engine.plan import Actor, Plan
from peft_engine.router import Router
from peft_engine.runtime import blas_threads
from tests.engine.conftest import make_delta
from tests.engine.derived import derived_from
from tests.engine.method_table import METHOD_CASES
from tests.tiny_bases import write_tiny_llama, write_tiny_qwen

Step = tuple[Sequence[Part], Sequence[Actor | None]]

WRITERS: Mapping[str, Callable[[Path], Path]] = {
    "llama": write_tiny_llama,
    "qwen2": lambda folder: write_tiny_qwen(folder, version=2),
    "qwen3": lambda folder: write_tiny_qwen(folder, version=3),
}
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def bases(models_dir: Path) -> dict[str, Base]:
    return {
        family: load_base(
            str(write(models_dir / f"fast-{family}")), name=family, models_dir=models_dir
        )
        for family, write in WRITERS.items()
    }


def fast_of(base: Base) -> LlamaForward:
    made = DecodingForward(base, KeyValueSlots())
    made.prepare()
    assert made._fast is not None, "the base is not taken for llama-like"
    return made._fast


@torch.inference_mode()
def walk(base: Base, steps: Sequence[Step], *, fast: bool) -> list[Tensor]:
    """Logits after every step."""
    forward = fast_of(base) if fast else GeneralForward(base, KeyValueSlots())
    router = Router(base.trunk)
    found = []
    for parts, owners in steps:
        plan = Plan.in_order(owners)
        with router.use(plan):
            if isinstance(forward, LlamaForward):
                assert forward.knows(parts, plan.stages)
            forward._slots.reserve(slots=8, tokens=1)
            found.append(forward.logits(forward.hidden(parts, plan.stages)))
    return found


def lives(owners: Sequence[Actor | None]) -> list[Step]:
    """Rows of unequal length are read, all write twice, one leaves, one comes, all write."""
    a, b, c, d = owners
    prompts = [[7, 8, 9, 10], [20, 21], [30, 31, 32, 33, 34, 35], [40]]
    reading: list[Step] = [
        ([Part(i, 0, ids) for i, ids in enumerate(prompts)], [a, b, c, d]),
    ]
    ends = [len(ids) for ids in prompts]
    writing: list[Step] = [
        ([Part(i, end + t, [50 + t + i]) for i, end in enumerate(ends)], [a, b, c, d])
        for t in range(2)
    ]
    # The row of slot 1 leaves and a new one takes its place; then not all rows move.
    coming: list[Step] = [
        ([Part(1, 0, [60, 61, 62])], [c]),
        ([Part(1, 3, [63, 64])], [c]),
        (
            [Part(0, 6, [70]), Part(1, 5, [71]), Part(2, 8, [72]), Part(3, 3, [73])],
            [a, c, c, d],
        ),
        ([Part(2, 9, [74]), Part(0, 7, [75])], [c, a]),
    ]
    return reading + writing + coming


def assert_equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for own, other in zip(found, expected, strict=True):
        largest = float(other.abs().max())
        assert float((own - other).abs().max()) <= TOLERANCE * max(1.0, largest)


@pytest.mark.parametrize("family", WRITERS)
def test_plain_rows_and_lora_of_several_ranks(family: str, bases: dict[str, Base]) -> None:
    base = bases[family]
    narrow = LoraConfig(r=2, targets=("q_proj", "v_proj", "up_proj"))
    owners = [
        Actor.of(make_delta(base, seed=1, strength=0.1)),
        None,
        Actor.of(make_delta(base, seed=2, strength=0.1, config=narrow)),
        Actor.of(make_delta(base, seed=3, strength=0.1, config=LoraConfig(r=7))),
    ]
    for rows in (owners, [owners[0]] * 4, [owners[2], owners[0], owners[2], owners[0]]):
        steps = lives(rows)
        assert_equal(walk(base, steps, fast=True), walk(base, steps, fast=False))


@pytest.mark.parametrize("case", [name for name in METHOD_CASES if "prefix" not in name])
def test_every_kind_of_delta_beside_lora_and_the_base(case: str, bases: dict[str, Base]) -> None:
    base = bases["llama"]
    own, other = (
        Actor.of(make_delta(base, seed=seed, config=METHOD_CASES[case], strength=0.1))
        for seed in (1, 2)
    )
    lora = Actor.of(make_delta(base, seed=3, strength=0.1))
    steps = lives([own, lora, None, other])
    assert_equal(walk(base, steps, fast=True), walk(base, steps, fast=False))


@pytest.mark.parametrize("case", [name for name in METHOD_CASES if "prefix" in name])
def test_prefixes_are_looked_at_when_rows_write(case: str, bases: dict[str, Base]) -> None:
    """Prompts under a prefix are read by the base's own modules, into the same slots."""
    base = bases["qwen3"]
    own, other = (
        Actor.of(make_delta(base, seed=seed, config=METHOD_CASES[case], strength=0.1))
        for seed in (1, 2)
    )
    steps = lives([own, None, other, None])
    expected = walk(base, steps, fast=False)
    slots = KeyValueSlots()
    both = DecodingForward(base, slots)
    both.prepare()
    assert both._fast is not None
    router, used = Router(base.trunk), []
    with torch.inference_mode():
        for (parts, owners), logits in zip(steps, expected, strict=True):
            plan = Plan.in_order(owners)
            slots.reserve(slots=8, tokens=1)
            with router.use(plan):
                used.append(both._fast.knows(parts, plan.stages))
                assert_equal([both.logits(both.hidden(parts, plan.stages))], [logits])
    assert set(used) == {True, False}


@pytest.mark.parametrize(
    ("scheme", "allowed"),
    [("fp16", 1e-5), ("int8", 0.1), ("int8-weight-only", 1e-3), ("nf4", 1e-4)],
)
def test_quantized_bases_keep_their_own_kernels(
    scheme: str, allowed: float, bases: dict[str, Base]
) -> None:
    """int8 rounds activations: a last bit on the other side of a half shows in what follows.

    nf4 rounds them before the language head alone, to 1 / (63 · 126) of the largest.
    """
    base = derived_from(bases["qwen2"], scheme)
    owners = [Actor.of(make_delta(base, seed=1, strength=0.1)), None] * 2
    steps = lives(owners)
    found, expected = (walk(base, steps, fast=fast) for fast in (True, False))
    for own, other in zip(found, expected, strict=True):
        assert float((own - other).norm()) <= allowed * float(other.norm())


def test_a_base_in_bf16_is_computed_in_bf16(models_dir: Path) -> None:
    base = load_base(
        str(write_tiny_llama(models_dir / "fast-bf16")),
        name="bf16",
        models_dir=models_dir,
        precision="bf16",
    )
    owners = [Actor.of(make_delta(base, seed=1, strength=0.1)), None] * 2
    steps = lives(owners)
    found, expected = (walk(base, steps, fast=fast) for fast in (True, False))
    for own, other in zip(found, expected, strict=True):
        assert own.dtype == torch.float32
        assert float((own - other).norm()) <= 0.05 * float(other.norm())


def test_the_kernel_of_every_device_copies_only_the_weights_that_it_joins(
    bases: dict[str, Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peft_engine.decoding.fast._KERNELS", ("torch",))
    base = bases["qwen2"]
    joined = (
        "q_proj.weight",
        "k_proj.weight",
        "v_proj.weight",
        "gate_proj.weight",
        "up_proj.weight",
    )
    copied = sum(w.nbytes for name, w in base.trunk.named_parameters() if name.endswith(joined))
    assert fast_of(base).layout_bytes == copied
    steps = lives([Actor.of(make_delta(base, seed=1, strength=0.1)), None] * 2)
    assert_equal(walk(base, steps, fast=True), walk(base, steps, fast=False))


def test_a_delta_that_leaves_leaves_nothing_behind(bases: dict[str, Base]) -> None:
    """The stack of matrices is used again by other deltas, of other ranks."""
    base = bases["llama"]
    actors = [
        Actor.of(make_delta(base, seed=seed, strength=0.1, config=LoraConfig(r=rank)))
        for seed, rank in enumerate((5, 1, 3, 2, 4))
    ]
    reading = [([Part(i, 0, [9 + i, 5])], [actor]) for i, actor in enumerate(actors)]
    turns: list[Step] = []
    for turn in range(6):
        rows = [actors[(turn * step + 1) % 5] if turn % 3 else None for step in (1, 2, 3)]
        turns.append(([Part(i, 2 + turn, [11 + turn]) for i in range(3)], rows))
    steps = [*reading, *turns]
    assert_equal(walk(base, steps, fast=True), walk(base, steps, fast=False))


def test_a_failure_in_the_middle_of_a_change_answers_nobody_with_anothers_delta(
    bases: dict[str, Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan of before comes again after the failure, and its slots were partly overwritten."""
    base = bases["llama"]
    a, b, c = (Actor.of(make_delta(base, seed=seed, strength=0.1)) for seed in (1, 2, 3))
    before, after = Plan.in_order([a, b]), Plan.in_order([c, a])
    parts = [Part(0, 0, [9]), Part(1, 0, [8])]
    fast, router = fast_of(base), Router(base.trunk)
    fast._slots.reserve(slots=2, tokens=1)
    write, calls = LoraStack._write, []

    def fail_late(stack: LoraStack, *more: Any) -> None:
        calls.append(stack)
        if len(calls) == 4:
            raise MemoryError
        write(stack, *more)

    with torch.inference_mode(), router.use(before):
        expected = fast.hidden(parts, before.stages)
        with monkeypatch.context() as broken:
            broken.setattr(LoraStack, "_write", fail_late)
            with pytest.raises(MemoryError):
                fast.hidden(parts, after.stages)
        assert torch.equal(fast.hidden(parts, before.stages), expected)


def test_a_base_that_computes_something_else_is_not_taken(
    models_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = load_base(
        str(write_tiny_llama(models_dir / "scaled")), name="scaled", models_dir=models_dir
    )

    def scale(module: torch.nn.Module, args: object, output: Tensor) -> Tensor:
        return output * 1.5

    handle = base.trunk.get_submodule("layers.1.mlp").register_forward_hook(scale)
    made = DecodingForward(base, KeyValueSlots())
    made.prepare()
    handle.remove()
    assert made.kernel == "general"
    assert "does not compute what scaled does" in caplog.text


@pytest.mark.parametrize("family", ["gpt2"])
def test_other_families_go_through_their_own_modules(
    family: str, request: pytest.FixtureRequest
) -> None:
    made = DecodingForward(request.getfixturevalue(family), KeyValueSlots())
    made.prepare()
    assert made.kernel == "general"


@pytest.fixture
def one_blas_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("peft_engine.decoding.products._is_avx2", lambda: True)
    with threadpool_limits(1, user_api="blas"):
        yield


@pytest.mark.parametrize(("capability", "usable_there"), [("AVX2", True), ("AVX512", False)])
def test_blas_is_for_processors_on_which_it_is_quicker(
    capability: str, usable_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    with threadpool_limits(1, user_api="blas"):
        if not blas_threads():
            pytest.skip("nobody can tell how many threads numpy's BLAS has")
        found = usable("blas", dtype=torch.float32, device=torch.device("cpu"))
    assert found == usable_there


@pytest.mark.usefixtures("one_blas_thread")
@pytest.mark.parametrize("family", WRITERS)
def test_a_row_writes_alone(family: str, bases: dict[str, Base]) -> None:
    base = bases[family]
    if not usable("blas", dtype=torch.float32, device=torch.device("cpu")):
        pytest.skip("nobody can tell how many threads numpy's BLAS has")
    owner = Actor.of(make_delta(base, seed=1, strength=0.1))
    for own in (owner, None):
        steps: list[Step] = [([Part(0, 0, [7, 8, 9])], [own])]
        steps += [([Part(0, 3 + t, [50 + t])], [own]) for t in range(3)]
        assert fast_of(base).kernel == "blas"
        assert_equal(walk(base, steps, fast=True), walk(base, steps, fast=False))


@pytest.mark.usefixtures("one_blas_thread")
@pytest.mark.parametrize("kernel", PRODUCTS)
def test_products_are_those_of_torch(kernel: Kernel) -> None:
    cpu = torch.device("cpu")
    if not usable(kernel, dtype=torch.float32, device=cpu):
        pytest.skip(f"{kernel} is not built into this torch")
    generator = torch.Generator().manual_seed(5)
    weight, bias, x, residual = (
        torch.randn(*shape, generator=generator).half().float()
        for shape in ((24, 40), (24,), (5, 40), (5, 24))
    )
    product = PRODUCTS[kernel](weight, bias)
    for rows in (5, 4, 2, 1):
        own, other = x[:rows], residual[:rows]
        expected = torch.nn.functional.linear(own, weight, bias)
        assert torch.allclose(product(own), expected, atol=1e-5)
        assert torch.allclose(product.add(own, other.clone()), expected + other, atol=1e-5)


def test_bias_only_deltas_keep_other_rows_bit_by_bit(bases: dict[str, Base]) -> None:
    base = bases["llama"]
    own = Actor.of(make_delta(base, seed=1, config=BitfitConfig(biases="all"), strength=0.1))
    mixed, plain = (lives([first, None, None, None])[1:2] for first in (own, None))
    reading = lives([None, None, None, None])[:1]
    found = walk(base, [*reading, *mixed], fast=True)[-1]
    expected = walk(base, [*reading, *plain], fast=True)[-1]
    assert torch.equal(found[1:], expected[1:])
    assert not torch.equal(found[0], expected[0])
