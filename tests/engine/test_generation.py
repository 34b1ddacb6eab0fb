"""Generation against transformers, alone and in company, and every way of choosing."""

from collections import Counter

import pytest
import torch

from peft_engine.bases.base import Base
from peft_engine.generation import Generated, Sampling, generate
from peft_engine.plan import Actor, Plan
from peft_engine.router import Router
from tests.engine.conftest import make_delta

PROMPTS = [[10, 11, 12], [20, 21, 22, 23, 24, 25, 26], [30], [40, 41]]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_greedy_text_is_what_transformers_writes(
    family: str, request: pytest.FixtureRequest
) -> None:
    base: Base = request.getfixturevalue(family)
    found = generate(base, PROMPTS, [Sampling(max_new_tokens=12)] * 4)
    for prompt, own in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt], device=base.device)
        expected = base.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
        )[0, len(prompt) :]
        assert own.ids == expected.tolist()


def test_rows_of_several_deltas_write_what_they_write_alone(llama: Base) -> None:
    router = Router(llama.trunk)
    actors: list[Actor | None] = [
        Actor.of(make_delta(llama, seed=seed, strength=0.1)) for seed in (1, 2, 3)
    ]
    rows = [*actors, None]

    def write(which: list[int]) -> dict[int, Generated]:
        plan = Plan.build([rows[row] for row in which])
        prompts = [PROMPTS[which[place]] for place in plan.order]
        with router.use(plan):
            found = generate(llama, prompts, [Sampling(max_new_tokens=10)] * len(which))
        return {which[place]: text for place, text in zip(plan.order, found, strict=True)}

    together = write([3, 0, 1, 2])
    alone = {row: write([row])[row] for row in range(4)}
    assert {row: text.ids for row, text in together.items()} == {
        row: text.ids for row, text in alone.items()
    }
    assert len({tuple(text.ids) for text in alone.values()}) == 4


def test_a_row_ends_at_its_own_end(llama: Base) -> None:
    plain = generate(llama, [PROMPTS[0]], [Sampling(max_new_tokens=20)])[0]
    assert plain.finish_reason in ("length", "stop")
    middle = plain.text[3:5]
    stopped, short = generate(
        llama,
        [PROMPTS[0], PROMPTS[0]],
        [Sampling(max_new_tokens=20, stop=(middle,)), Sampling(max_new_tokens=2)],
    )
    assert stopped.finish_reason == "stop"
    assert stopped.text == plain.text[: plain.text.find(middle)]
    assert (short.finish_reason, short.ids) == ("length", plain.ids[:2])


def test_the_seed_decides_sampled_text_whatever_else_is_in_the_batch(llama: Base) -> None:
    hot = Sampling(max_new_tokens=12, temperature=1.5, seed=7)
    other = Sampling(max_new_tokens=12, temperature=1.5, seed=8)
    first, _, same = generate(llama, [PROMPTS[0]] * 3, [hot, other, hot])
    alone = generate(llama, [PROMPTS[0]], [hot])[0]
    assert first.ids == same.ids == alone.ids
    assert generate(llama, [PROMPTS[0]], [other])[0].ids != alone.ids


def test_top_k_and_top_p_leave_the_unlikely_out(llama: Base) -> None:
    with torch.no_grad():
        logits = llama.model(input_ids=torch.tensor([PROMPTS[1]], device=llama.device)).logits[
            0, -1
        ]
    likely = logits.softmax(-1).sort(descending=True)

    def drawn(**options: float) -> Counter[int]:
        rows = [
            Sampling(max_new_tokens=1, temperature=1.0, seed=seed, **options)  # type: ignore[arg-type]
            for seed in range(200)
        ]
        return Counter(row.ids[0] for row in generate(llama, [PROMPTS[1]] * 200, rows))

    assert set(drawn(top_k=3)) == set(likely.indices[:3].tolist())
    share = float(likely.values[:2].sum()) - 1e-4
    assert set(drawn(top_p=share)) == set(likely.indices[:2].tolist())
    assert len(drawn()) > 3
