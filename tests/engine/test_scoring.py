"""Given answers, scored: the numbers of training, and of the model asked without our code."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from peft_engine.bases.base import Base
from peft_engine.configs.methods import (
    BottleneckConfig,
    Ia3Config,
    LoraConfig,
    MethodConfig,
    PrefixConfig,
)
from peft_engine.errors import RowError
from peft_engine.parts.batching import collate
from peft_engine.serving import Engine, Row, prepare_row, scoring
from peft_engine.tasks.text_generation import TextGeneration
from tests.engine.conftest import make_delta

ANSWERS = ("my card", "a refund, please", "late", "where is my order")
TALK: Any = {
    "messages": [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "what is it"},
        {"role": "user", "content": "my card is late"},
    ]
}
FAMILIES = ["llama", "gpt2", "t5", "bart"]


def scores_of(base: Base, rows: Sequence[Any]) -> list[list[float]]:
    return [answer.output["log_likelihoods"] for answer in Engine(base).predict(rows)]


def asked(base: Base, value: Any, delta: Any = None, answers: Any = ANSWERS) -> Any:
    return prepare_row(base, Row(None, value, delta, {"answers": list(answers)}))


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_model_alone(base: Base) -> None:
    """By the logits that transformers gives for the whole row of each answer."""
    (found,) = scores_of(base, [asked(base, "my card")])
    turns = [{"role": "user", "content": "my card"}]
    for answer, score in zip(ANSWERS, found, strict=True):
        if base.text.answer_start is None:
            whole = base.text.encode_conversation(
                [*turns, {"role": "assistant", "content": answer}]
            )
            marks = [turn.learned for turn in whole for _ in turn.input_ids]
            ids = [token for turn in whole for token in turn.input_ids]
            inputs = {"input_ids": torch.tensor([ids], device=base.device)}
        else:
            whole = base.text.encode_answer(answer)
            marks = [turn.learned for turn in whole for _ in turn.input_ids]
            ids = [token for turn in whole for token in turn.input_ids]
            prompt = base.text.encode_prompt(turns, max_length=base.max_length).input_ids
            inputs = {
                "input_ids": torch.tensor([prompt], device=base.device),
                "decoder_input_ids": torch.tensor([ids], device=base.device),
            }
        with torch.inference_mode():
            shares = base.model(**inputs).logits[0].float().log_softmax(-1)
        wanted = sum(
            float(shares[place - 1, token])
            for place, (token, learned) in enumerate(zip(ids, marks, strict=True))
            if learned
        )
        assert score == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "config",
    [LoraConfig(r=4), BottleneckConfig(), Ia3Config(), PrefixConfig()],
    ids=lambda c: c.type,
)
def test_scores_are_the_losses_of_training(base: Base, config: MethodConfig) -> None:
    delta = make_delta(base, seed=3, config=config)
    (found,) = scores_of(base, [asked(base, TALK, delta)])
    task = TextGeneration()
    for answer, score in zip(ANSWERS, found, strict=True):
        said = [*TALK["messages"], {"role": "assistant", "content": answer}]
        example = task.encode(base, [{"messages": said}], labels=None, max_length=99)[-1]
        if base.text.answer_start is None:
            # the assistant's earlier turn is learned too, but is no part of the answer
            prompt = len(task.encode_input(base, TALK, max_length=99))
            marks = [place >= prompt and own for place, own in enumerate(example.target)]
            example = replace(example, target=marks)
        batch = collate([example], pad_id=base.text.pad_id, device=base.device)
        hidden = Engine(base).hidden(batch, delta)
        with torch.inference_mode():
            loss = task.loss(base, None, hidden, batch, label_smoothing=0)
        assert score == pytest.approx(-float(loss.total), abs=1e-3)


def test_a_prompt_is_read_once_where_that_changes_nothing(llama: Base, t5: Base) -> None:
    shared = [asked(llama, TALK), asked(llama, TALK, make_delta(llama, seed=1))]
    assert all(row.shares_prompt for row in shared)
    apart = [replace(row, shares_prompt=False) for row in shared]
    for one, other in zip(scores_of(llama, shared), scores_of(llama, apart), strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    assert shared[0].input_tokens == apart[0].input_tokens < apart[0].cost_tokens
    assert shared[0].cost_tokens == shared[0].input_tokens
    prefix = make_delta(llama, seed=1, config=PrefixConfig())
    assert not asked(llama, TALK, prefix).shares_prompt
    assert not asked(t5, TALK).shares_prompt


def test_neighbours_and_parts_change_nothing(llama: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    delta = make_delta(llama, seed=2)
    rows = [
        asked(llama, TALK, delta),
        asked(llama, "hello", None, ("yes", "no")),
        prepare_row(llama, Row(None, "hello", delta, {"max_new_tokens": 3})),
        asked(llama, "hello", delta),
    ]
    engine = Engine(llama)
    together = [answer.output for answer in engine.predict(rows)]
    assert "text" in together[2]
    monkeypatch.setattr(scoring, "PACKED_TOKENS", 1)
    for row, mixed in zip(rows, together, strict=True):
        if row.kind != "score":
            continue
        (alone,) = scores_of(llama, [row])
        assert alone == pytest.approx(mixed["log_likelihoods"], abs=1e-4)
        forwards, pauses = engine.predict_in_parts(row, most_tokens=1), 0
        while True:
            try:
                next(forwards)
            except StopIteration as ended:
                in_parts = ended.value
                break
            pauses += 1
        assert pauses == len(row.examples)
        assert in_parts.output["log_likelihoods"] == pytest.approx(alone, abs=1e-4)
        assert in_parts.input_tokens == row.input_tokens


def test_what_cannot_be_scored_is_refused(
    llama: Base, bert: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong: list[tuple[str, str, Any, dict[str, Any]]] = [
        ("bad_option", "options.answers", "hi", {"answers": []}),
        ("bad_option", "options.answers", "hi", {"answers": "yes"}),
        ("bad_option", "options.answers", "hi", {"answers": ["yes", ""]}),
        ("bad_option", "options.answers", "hi", {"answers": ["yes", "yes"]}),
        ("bad_option", "options.answers", "hi", {"answers": [str(n) for n in range(256)]}),
        ("bad_option", "options.seed", "hi", {"answers": ["yes"], "seed": 1}),
        ("bad_input", "input", {"text": "hi"}, {"answers": ["yes"]}),
        ("too_long", "input", "hi", {"answers": ["yes", "card " * llama.max_length]}),
        ("too_long", "input", "card " * llama.max_length, {"answers": ["yes"]}),
    ]
    for code, param, value, options in wrong:
        with pytest.raises(RowError) as told:
            prepare_row(llama, Row(None, value, None, options))
        assert (told.value.code, told.value.param) == (code, param)
    with pytest.raises(RowError) as told:
        prepare_row(bert, Row("text-generation", "hi", None, {"answers": ["yes"]}))
    assert told.value.code == "task_mismatch"


def test_the_bound_counts_a_prompt_as_often_as_it_is_read(
    llama: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, prefix = asked(llama, TALK), make_delta(llama, seed=1, config=PrefixConfig())
    monkeypatch.setattr(scoring, "MAX_COMPUTED_TOKENS", whole.input_tokens)
    assert asked(llama, TALK).cost_tokens == whole.input_tokens
    with pytest.raises(RowError, match="fewer answers") as told:
        asked(llama, TALK, prefix)  # which has every answer read it anew
    assert told.value.code == "too_long"
    # so little room that no forward has two answers
    monkeypatch.setattr(scoring, "PACKED_TOKENS", 1)
    assert whole.cost_tokens == sum(example.tokens for example in whole.examples)
    with pytest.raises(RowError, match="fewer answers"):
        asked(llama, TALK)


def test_forwards_of_answers_are_bounded(llama: Base) -> None:
    def parts(most_tokens: int) -> list[int]:
        row = asked(llama, TALK)
        bounds = {"prompt_tokens": row.prompt_tokens, "most_tokens": most_tokens}
        found = list(scoring.packed_parts(row.examples, **bounds))
        assert [lo for lo, _ in found] == [0, *(hi for _, hi in found[:-1])]
        assert found[-1][1] == len(ANSWERS)
        return [sum(e.target for e in row.examples[lo:hi]) for lo, hi in found]

    prompt = asked(llama, TALK).prompt_tokens
    whole = parts(10_000)
    assert len(whole) == 1
    # never less than the prompt has, or reading it again would be most of the work
    assert parts(1) == parts(prompt)
    row = replace(asked(llama, "hi"), prompt_tokens=0)
    single = list(scoring.packed_parts(row.examples, prompt_tokens=0, most_tokens=1))
    assert single == [(n, n + 1) for n in range(len(ANSWERS))]
