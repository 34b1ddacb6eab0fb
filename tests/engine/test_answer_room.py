"""How long an answer of an evaluation may be does not depend on the rows beside it."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from peft_engine.bases.base import Base
from peft_engine.generation import Generated, Sampling, generate
from peft_engine.tasks.text_generation import MAX_EVALUATION_TOKENS, _answer_rows, _side_by_side


@dataclass
class Writer:
    """The plain base; keeps how many tokens it was asked for."""

    base: Base
    asked: list[int]

    def generate(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling]
    ) -> list[Generated]:
        self.asked += [sampling.max_new_tokens for sampling in samplings]
        return list(generate(self.base, prompts, samplings))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_long_prompt_does_not_shorten_the_answers_beside_it(
    request: pytest.FixtureRequest, family: str
) -> None:
    base: Base = request.getfixturevalue(family)
    # two prompts that leave less than an answer may have, and three that leave more or as much
    texts = ["x" * (base.max_length - 30), "x" * (base.max_length - 20), "my", "my card", "card"]
    records = [{"prompt": text, "completion": "yes"} for text in texts]
    found = []
    for batch_size in (1, 8):
        writer = Writer(base, [])
        found.append((_answer_rows(writer, records, 100, batch_size), sorted(writer.asked)))  # type: ignore[arg-type]
    assert found[0] == found[1]
    assert len(set(found[0][1])) > 2


def test_rows_with_the_same_room_stand_together() -> None:
    lengths = [3, 90, 5, 80, 4]
    most = [MAX_EVALUATION_TOKENS, 10, MAX_EVALUATION_TOKENS, 20, MAX_EVALUATION_TOKENS]
    assert list(_side_by_side(lengths, most, 2)) == [[1], [3], [2, 4], [0]]
