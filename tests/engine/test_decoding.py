"""The decoding batch: a row writes what it writes alone, whoever joins and leaves beside it."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch

from peft_engine.bases.base import Base
from peft_engine.bases.text import TextEncoder
from peft_engine.configs.methods import BottleneckConfig, LoraConfig
from peft_engine.decoding import (
    Decoder,
    DecodingLimits,
    DecodingRow,
    Stages,
    TwoStackDecoder,
    make_decoder,
)
from peft_engine.decoding.choosing import likeliest, penalize
from peft_engine.decoding.text_stream import TextStream
from peft_engine.errors import RowError
from peft_engine.generation import Sampling
from peft_engine.plan import Actor, Plan
from peft_engine.router import Router
from tests.engine.conftest import make_delta
from tests.engine.method_table import METHOD_CASES

PROMPTS = [[10, 11, 12], [20, 21, 22, 23, 24, 25, 26], [30], [40, 41], list(range(50, 81))]
LIMITS = DecodingLimits(rows=4, cache_tokens=4 * 64, prefill_tokens=8)


def decoder_of(base: Base, limits: DecodingLimits = LIMITS) -> Decoder | TwoStackDecoder:
    router = Router(base.trunk)

    @contextmanager
    def in_force(owners: Sequence[Any]) -> Iterator[Stages]:
        plan = Plan.in_order(owners)
        with router.use(plan):
            yield plan.stages

    return make_decoder(base, in_force, limits)


def row_of(base: Base, prompt: list[int], owner: Any = None, **sampling: Any) -> DecodingRow:
    asked = Sampling(**({"max_new_tokens": 12} | sampling))
    return DecodingRow.of(prompt, asked, text=base.text, device=base.device, owner=owner)


def write(decoder: Decoder | TwoStackDecoder, *rows: DecodingRow) -> None:
    """Let rows join as soon as there is room, and step until all have ended."""
    waiting = list(rows)
    while waiting or decoder.rows:
        while waiting and decoder.has_room(waiting[0].longest_tokens):
            decoder.join(waiting.pop(0))
        decoder.step()


def alone(base: Base, prompt: list[int], owner: Any = None, **sampling: Any) -> DecodingRow:
    row = row_of(base, prompt, owner, **sampling)
    write(decoder_of(base, DecodingLimits(prefill_tokens=64)), row)
    return row


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bart"])
def test_greedy_text_is_what_transformers_writes(
    family: str, request: pytest.FixtureRequest
) -> None:
    base: Base = request.getfixturevalue(family)
    rows = [row_of(base, prompt) for prompt in PROMPTS]
    write(decoder_of(base), *rows)
    for row in rows:
        ids = torch.tensor([row.prompt], device=base.device)
        expected = base.model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
        )[0, len(base.text.answer_start or row.prompt) :]
        assert row.ids == expected.tolist()
        assert row.text.settled == base.text.decode(row.ids)


@pytest.mark.parametrize("family", ["llama", "t5", "bart"])
def test_rows_that_come_and_go_write_what_they_write_alone(
    family: str, request: pytest.FixtureRequest
) -> None:
    """Five kinds of delta and the base; rows join at any step, some are cancelled."""
    base: Base = request.getfixturevalue(family)
    owners: list[Actor | None] = [
        Actor.of(make_delta(base, seed=seed, strength=0.1)) for seed in (1, 2, 3)
    ]
    owners.append(None)
    draw = random.Random(3)
    rows = [
        row_of(
            base,
            PROMPTS[number % len(PROMPTS)],
            owners[number % len(owners)],
            max_new_tokens=draw.randint(1, 14),
            temperature=draw.choice([0.0, 0.0, 1.3]),
            seed=number,
        )
        for number in range(24)
    ]
    decoder = decoder_of(base)
    waiting, gone = list(rows), []
    while waiting or decoder.rows:
        if waiting and draw.random() < 0.6 and decoder.has_room(waiting[0].longest_tokens):
            decoder.join(waiting.pop(0))
        if decoder.rows and draw.random() < 0.05:
            gone.append(draw.choice(decoder.rows))
            decoder.cancel(gone[-1])
        decoder.step()
    assert gone
    assert decoder.cache_bytes == 0
    for row in rows:
        expected = alone(
            base,
            row.prompt,
            row.owner,
            max_new_tokens=row.sampling.max_new_tokens,
            temperature=row.sampling.temperature,
            seed=row.sampling.seed,
        )
        if row in gone:
            assert row.finish_reason == "cancelled"
            assert row.ids == expected.ids[: len(row.ids)]
        else:
            assert (row.ids, row.finish_reason) == (expected.ids, expected.finish_reason)


KINDS = ("lora", "rslora", "dora", "pfeiffer", "ia3", "mask", "prefix", "bitfit", "full")


def test_greedy_text_beside_every_kind_is_that_of_the_row_alone(llama: Base) -> None:
    """Rows of every kind and of the plain base join and leave on the fast path."""
    owners: list[Actor | None] = [
        Actor.of(make_delta(llama, seed=seed, config=METHOD_CASES[kind], strength=0.1))
        for seed, kind in enumerate(KINDS)
    ]
    owners.append(None)
    draw = random.Random(5)
    rows = [
        row_of(
            llama,
            PROMPTS[number % len(PROMPTS)],
            owners[number % len(owners)],
            max_new_tokens=draw.randint(3, 16),
        )
        for number in range(3 * len(owners))
    ]
    decoder = decoder_of(llama, DecodingLimits(rows=12, cache_tokens=12 * 64, prefill_tokens=16))
    assert isinstance(decoder, Decoder)
    waiting, mixes = draw.sample(rows, len(rows)), set()
    while waiting or decoder.rows:
        while waiting and draw.random() < 0.7 and decoder.has_room(waiting[0].longest_tokens):
            decoder.join(waiting.pop(0))
        mixes.add(frozenset(owners.index(r.owner) for r in decoder.rows if not r.is_prefilling))
        decoder.step()
    assert decoder.kernel != "general"
    assert max(map(len, mixes)) >= 6, "kinds stood beside one another"
    assert set.union(*map(set, mixes)) == set(range(len(owners)))
    telling = set()
    for row in rows:
        own, plain = (
            alone(llama, row.prompt, owner, max_new_tokens=row.sampling.max_new_tokens)
            for owner in (row.owner, None)
        )
        assert row.ids == own.ids
        assert row.text.settled == own.text.settled
        if own.ids != plain.ids:
            telling.add(owners.index(row.owner))
    assert telling == set(range(len(KINDS))), "every kind writes something else than the base"


def test_lora_rows_that_come_and_go_write_what_they_write_alone(llama: Base) -> None:
    """Rows of a delta are computed side by side, however many each has and wherever they stand."""
    owners: list[Actor | None] = [
        Actor.of(make_delta(llama, seed=seed, strength=0.1, config=config))
        for seed, config in enumerate(
            (LoraConfig(r=4), LoraConfig(r=2, targets=("q_proj", "down_proj")), LoraConfig(r=8))
        )
    ]
    owners.append(None)
    draw = random.Random(11)
    rows = [
        row_of(llama, PROMPTS[number % len(PROMPTS)], draw.choice(owners)) for number in range(20)
    ]
    decoder = decoder_of(llama, DecodingLimits(rows=8, cache_tokens=8 * 64, prefill_tokens=16))
    waiting = list(rows)
    while waiting or decoder.rows:
        if waiting and draw.random() < 0.7 and decoder.has_room(waiting[0].longest_tokens):
            decoder.join(waiting.pop(0))
        decoder.step()
    for row in rows:
        assert row.ids == alone(llama, row.prompt, row.owner).ids


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_a_row_gets_the_tokens_it_asked_for(llama: Base, tokens: int) -> None:
    rows = [row_of(llama, prompt, max_new_tokens=tokens) for prompt in PROMPTS]
    write(decoder_of(llama), *rows)
    assert [len(row.ids) for row in rows] == [tokens] * len(rows)


def test_a_long_prompt_is_read_in_parts_while_others_write(llama: Base) -> None:
    decoder = decoder_of(llama)
    first, long = row_of(llama, [1, 2], max_new_tokens=10), row_of(llama, PROMPTS[4])
    decoder.join(first)
    decoder.step()
    decoder.join(long)
    steps = 0
    while long.is_prefilling:
        before = len(first.ids)
        decoder.step()
        steps += 1
        assert len(first.ids) == before + 1
    assert steps == 4  # 31 tokens, 8 at a time
    write(decoder)
    assert long.ids == alone(llama, PROMPTS[4]).ids


def test_a_row_waits_until_there_is_room(llama: Base) -> None:
    decoder = decoder_of(llama, DecodingLimits(rows=8, cache_tokens=100, prefill_tokens=64))
    huge = row_of(llama, [1] * 100, max_new_tokens=100)
    assert decoder.has_room(huge.longest_tokens)  # alone it may always run
    small = [row_of(llama, [1, 2], max_new_tokens=30) for _ in range(4)]
    for row in small[:3]:
        assert decoder.has_room(row.longest_tokens)
        decoder.join(row)
    assert not decoder.has_room(small[3].longest_tokens)  # 4 rows of 32 tokens are more than 100
    assert not decoder.has_room(huge.longest_tokens)


def test_a_stop_text_is_cut_off_and_never_shown(llama: Base) -> None:
    plain = alone(llama, PROMPTS[0], max_new_tokens=20)
    whole = plain.text.settled
    stop = whole[4:7]
    row = row_of(llama, PROMPTS[0], max_new_tokens=20, stop=(stop,))
    decoder, shown = decoder_of(llama), ""
    decoder.join(row)
    while decoder.rows:
        decoder.step()
        assert row.text.settled.startswith(shown)
        shown = row.text.settled
    assert row.finish_reason == "stop"
    assert shown == whole[: whole.find(stop)]


class _Pieces:
    """A tokenizer of a few pieces."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self._pieces = pieces

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self._pieces[token] for token in ids)


def test_settled_text_is_what_no_stop_text_can_take_back() -> None:
    draw = random.Random(0)
    for _ in range(2000):
        stops = ["".join(draw.choices("ab", k=draw.randint(1, 6))) for _ in range(3)]
        pieces = ["".join(draw.choices("aabc", k=draw.randint(1, 4))) for _ in range(10)]
        stream, found = TextStream(cast(TextEncoder, _Pieces(pieces)), stops), ""
        for token, piece in enumerate(pieces):
            is_over = stream.add(token)
            found += piece
            places = [found.find(stop) for stop in stops if stop in found]
            assert is_over == bool(places)
            if is_over:
                assert stream.settled == found[: min(places)]
                break
            begun = (
                size
                for size in range(6, 0, -1)
                if any(stop.startswith(found[-size:]) and size < len(stop) for stop in stops)
            )
            assert stream.settled == found[: len(found) - min(next(begun, 0), len(found))]


def test_long_stop_texts_cost_a_few_steps_a_token() -> None:
    """The thread that owns all models looks for them: this took two minutes of it."""
    stops = [f"z{number}" + "ab  " * 5000 for number in range(16)]
    stream = TextStream(cast(TextEncoder, _Pieces(["ab  "])), stops)
    for tokens in range(1, 4001):
        assert not stream.add(0)
        assert len(stream.settled) == 4 * tokens


def test_penalties_are_what_transformers_and_openai_define(llama: Base) -> None:
    row = row_of(llama, [3, 4], repetition_penalty=2.0)
    logits = torch.arange(-5.0, 5.0)
    expected = logits.clone()
    expected[3], expected[4] = -2.0 * 2, -1.0 * 2
    assert torch.equal(penalize(logits, row), expected)
    written = row_of(llama, [3], presence_penalty=2.0, frequency_penalty=1.0)
    write(decoder_of(llama), written)
    found = logits.new_zeros(500) - penalize(logits.new_zeros(500), written)
    counts = torch.bincount(torch.tensor(written.ids), minlength=500)
    assert torch.allclose(found, (counts > 0) * 2.0 + counts * 1.0)
    assert len(set(written.ids)) > len(set(alone(llama, [3]).ids))


def test_logprobs_are_those_of_the_model(llama: Base) -> None:
    row = alone(llama, PROMPTS[1], logprobs=3, max_new_tokens=4)
    ids = torch.tensor([row.prompt + row.ids], device=llama.device)
    with torch.no_grad():
        expected = llama.model(input_ids=ids).logits[0].float().log_softmax(-1)
    for place, choice in enumerate(row.choices):
        own = expected[len(row.prompt) - 1 + place]
        assert choice.logprob == pytest.approx(float(own[choice.token]), abs=1e-4)
        best = own.topk(3)
        assert [token for token, _ in choice.top] == best.indices.tolist()
        assert [value for _, value in choice.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_a_row_that_goes_on_alone_leaves_its_cohort_as_it_was(t5: Base) -> None:
    """As the server does to find the row that makes a step fail."""
    decoder = decoder_of(t5, DecodingLimits(prefill_tokens=64))
    rows = [row_of(t5, prompt) for prompt in PROMPTS[:3]]
    for row in rows:
        decoder.join(row)
    decoder.step()
    assert decoder.step(only=[rows[1]]) == [rows[1]]
    assert [len(row.ids) for row in rows] == [1, 2, 1]
    write(decoder)
    assert [row.ids for row in rows] == [alone(t5, prompt).ids for prompt in PROMPTS[:3]]


def test_a_step_that_fails_is_made_again(t5: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = decoder_of(t5, DecodingLimits(prefill_tokens=64))
    rows = [row_of(t5, prompt) for prompt in PROMPTS[:2]]
    for row in rows:
        decoder.join(row)
    decoder.step()
    with monkeypatch.context() as broken:
        broken.setattr(t5.trunk.get_submodule("decoder.block.1"), "forward", _fail)
        with pytest.raises(RuntimeError, match="no memory"):
            decoder.step()
    write(decoder)
    assert [row.ids for row in rows] == [alone(t5, prompt).ids for prompt in PROMPTS[:2]]


def _fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("no memory")


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_a_prompt_that_cannot_be_read_changes_no_row_that_writes(
    family: str, request: pytest.FixtureRequest
) -> None:
    """The row that makes a step fail comes last; those before it have had their forward by then."""
    base: Base = request.getfixturevalue(family)
    decoder = decoder_of(base, DecodingLimits(rows=8, cache_tokens=8 * 64, prefill_tokens=64))
    drawn: dict[str, Any] = {"temperature": 1.0, "seed": 3}
    rows = [row_of(base, PROMPTS[0], max_new_tokens=2), row_of(base, PROMPTS[1], **drawn)]
    for row in rows:
        decoder.join(row)
    decoder.step()
    wild = make_delta(base, seed=1)
    for tensor in wild.tensors.values():
        tensor.fill_(1e30)
    late, bad = row_of(base, PROMPTS[3], **drawn), row_of(base, PROMPTS[3], Actor.of(wild))
    decoder.join(late)
    decoder.join(bad)
    with pytest.raises(RowError):
        decoder.step()
    assert [len(row.ids) for row in (*rows, late, bad)] == [1, 1, 0, 0]
    decoder.cancel(bad)
    write(decoder)
    assert rows[0].ids == alone(base, PROMPTS[0], max_new_tokens=2).ids
    assert rows[1].ids == alone(base, PROMPTS[1], **drawn).ids
    assert late.ids == alone(base, PROMPTS[3], **drawn).ids


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("temperature", [1e-6, 1e-40, 5e-324])
def test_a_temperature_of_almost_nothing_takes_the_likeliest(
    family: str, temperature: float, request: pytest.FixtureRequest
) -> None:
    base: Base = request.getfixturevalue(family)
    found = alone(base, PROMPTS[1], temperature=temperature)
    assert found.ids == alone(base, PROMPTS[1]).ids


@pytest.mark.parametrize(
    "config", [LoraConfig(r=4), BottleneckConfig(size=3)], ids=["lora", "bottleneck"]
)
def test_a_delta_whose_rows_stand_apart_is_computed_once(llama: Base, config: Any) -> None:
    one, other = (
        Actor.of(make_delta(llama, seed=seed, config=config, strength=0.1)) for seed in (1, 2)
    )
    owners = [one, None, other, one, other, one]
    plan = Plan.in_order(owners)
    (stage, *_) = next(iter(plan.stages.values()))
    assert len(stage.segments) == 5
    assert [len(rows) for _, rows in stage.segments.by_delta] == [3, 2]
    rows = [row_of(llama, [7 + place], owner) for place, owner in enumerate(owners)]
    write(decoder_of(llama, DecodingLimits(rows=8, prefill_tokens=64)), *rows)
    for row in rows:
        assert row.ids == alone(llama, row.prompt, row.owner).ids


@pytest.mark.parametrize("width", [7, 1024, 3000, 4096])
def test_the_likeliest_token_is_found_wherever_it_stands(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    logits = torch.randn(64, width, generator=generator)
    logits[0] = 0.0  # of equals the first
    logits[1, -1], logits[2, 0] = 50.0, 50.0
    logits[3, [2, width - 2]] = 60.0
    assert torch.equal(likeliest(logits), logits.argmax(-1))
    assert likeliest(logits)[:4].tolist() == [0, width - 1, 0, 2]
    logits[4, -1], logits[5, 0] = torch.nan, torch.nan
    assert likeliest(logits)[4:6].tolist() == [width - 1, 0]


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_a_row_whose_numbers_overflow_leaves_nothing_behind(
    family: str, request: pytest.FixtureRequest
) -> None:
    """A delta may be made to give no numbers; the next row in its place must not meet them."""
    base: Base = request.getfixturevalue(family)
    wild = make_delta(base, seed=1, strength=0.1)
    for tensor in wild.tensors.values():
        tensor.fill_(1e30)
    long_row = row_of(base, PROMPTS[4], max_new_tokens=20)
    wild_row = row_of(base, PROMPTS[4], Actor.of(wild), max_new_tokens=3)
    decoder = decoder_of(base, DecodingLimits(rows=4, cache_tokens=4 * 64, prefill_tokens=64))
    decoder.join(long_row)
    decoder.join(wild_row)
    with pytest.raises(RowError) as caught:
        decoder.step()
    assert caught.value.code == "answer_not_finite"
    decoder.cancel(wild_row)
    after = row_of(base, PROMPTS[0])
    decoder.join(after)
    while decoder.rows:
        decoder.step()
    assert after.ids == alone(base, PROMPTS[0]).ids
    assert long_row.ids == alone(base, PROMPTS[4], max_new_tokens=20).ids


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_a_row_may_leave_while_another_has_joined_and_not_begun(
    family: str, request: pytest.FixtureRequest
) -> None:
    base: Base = request.getfixturevalue(family)
    decoder = decoder_of(base)
    first, second, third = (row_of(base, prompt) for prompt in PROMPTS[:3])
    decoder.join(first)
    decoder.step()
    decoder.join(second)
    decoder.join(third)
    decoder.cancel(third)
    decoder.cancel(first)
    while decoder.rows:
        decoder.step()
    assert second.ids == alone(base, PROMPTS[1]).ids
