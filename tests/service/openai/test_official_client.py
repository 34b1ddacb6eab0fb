"""The face under ``/v1`` as the official client uses it; our own engine is the oracle."""

from typing import Any

import numpy as np
import openai
import pytest

from peft_engine.bases.base import Base
from peft_engine.serving import Engine, Row, prepare_row
from tests.service.openai.conftest import House

TURNS: Any = [
    {"role": "developer", "content": "be kind"},
    {
        "role": "user",
        "content": [{"type": "text", "text": "where is "}, {"type": "text", "text": "my card"}],
    },
]
AS_RENDERED = {
    "messages": [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "where is my card"},
    ]
}


def alone(
    house: House, bases: dict[str, Base], value: Any, *, plain: bool = False, **options: Any
) -> Any:
    base = bases["llama"]
    row = Row(None, value, None if plain else house.texts.delta, options)
    return Engine(base).predict([prepare_row(base, row)])[0].output


def test_a_conversation_is_answered(either: House, tiny_bases: dict[str, Base]) -> None:
    wanted = alone(either, tiny_bases, AS_RENDERED, max_new_tokens=6, logprobs=2)
    for _ in range(2):
        answer = either.client.chat.completions.create(
            model="menu",
            messages=TURNS,
            max_completion_tokens=6,
            temperature=0,
            logprobs=True,
            top_logprobs=2,
        )
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content == wanted["text"]
    assert choice.finish_reason == wanted["finish_reason"]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == wanted["tokens"]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + wanted["tokens"]
    assert answer.model == "menu@1"
    told = answer.x_receipt
    assert told["adapter_digest"] == either.texts.delta.digest
    base, own = (
        told[name].partition(":")[2][:12] for name in ("base_fingerprint", "adapter_digest")
    )
    assert answer.system_fingerprint == f"fp_{base}_{own}"
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    for token, expected in zip(choice.logprobs.content, wanted["logprobs"], strict=True):
        assert token.token == expected["token"]
        assert token.logprob == pytest.approx(expected["logprob"], abs=1e-5)
        assert len(token.top_logprobs) <= 2


def test_a_conversation_is_streamed(either: House, tiny_bases: dict[str, Base]) -> None:
    wanted = alone(either, tiny_bases, AS_RENDERED, max_new_tokens=6)
    stream = either.client.chat.completions.create(
        model="menu",
        messages=TURNS,
        max_tokens=6,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(texts) == wanted["text"]
    assert chunks[-2].choices[0].finish_reason == wanted["finish_reason"]
    assert chunks[-2].x_receipt["adapter_digest"] == either.texts.delta.digest
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == wanted["tokens"]
    assert {chunk.usage for chunk in chunks[:-1]} == {None}
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1


def test_several_texts_have_the_seed_that_is_told(
    house: House, tiny_bases: dict[str, Base]
) -> None:
    ask: Any = {"model": "llama", "prompt": ["hi", "my order", "hi"], "n": 2, "max_tokens": 5}
    ask |= {"presence_penalty": 0.5, "extra_body": {"x_tunery": {"top_k": 20}}}
    first = house.client.completions.create(**ask)
    again = house.client.completions.create(**ask, seed=first.x_seed)
    options = {"max_new_tokens": 5, "temperature": 1.0, "presence_penalty": 0.5, "top_k": 20}
    wanted = [
        alone(house, tiny_bases, prompt, plain=True, seed=first.x_seed + index, **options)["text"]
        for index, prompt in enumerate(prompt for prompt in ask["prompt"] for _ in range(ask["n"]))
    ]
    assert len(set(wanted)) == 6, "equal prompts have texts of their own"
    for answer in (first, again):
        assert [choice.index for choice in answer.choices] == list(range(6))
        assert [choice.text for choice in answer.choices] == wanted
    assert first.x_receipt["adapter_id"] is None
    streamed = [""] * 6
    for chunk in house.client.completions.create(**ask, seed=first.x_seed, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == wanted


def test_none_asks_for_the_default(house: House) -> None:
    """The client sends null for what is None, not for what is left out."""
    nulls: dict[str, Any] = dict.fromkeys(
        ("top_p", "n", "stop", "presence_penalty", "frequency_penalty", "user", "logit_bias")
    )
    turns: Any = [{"role": "user", "content": "my card"}]
    told = house.client.chat.completions.create(
        model="menu@1",
        messages=turns,
        seed=7,
        temperature=None,
        stream=None,
        max_tokens=None,
        max_completion_tokens=8,
        **nulls,
    )
    expected = house.client.chat.completions.create(
        model="menu@1", messages=turns, seed=7, max_completion_tokens=8
    )
    assert told.choices == expected.choices
    written = house.client.completions.create(
        model="menu@1", prompt="hi", seed=7, max_tokens=None, temperature=None, **nulls
    )
    assert (
        written.choices
        == house.client.completions.create(model="menu@1", prompt="hi", seed=7).choices
    )


def test_a_stop_and_logprobs_of_a_prompt(house: House, tiny_bases: dict[str, Base]) -> None:
    whole = alone(house, tiny_bases, "hi", max_new_tokens=8)["text"]
    stop = whole[len(whole) // 2 :][:3]
    wanted = alone(house, tiny_bases, "hi", max_new_tokens=8, stop=[stop], logprobs=1)
    answer = house.client.completions.create(
        model="menu@1", prompt="hi", max_tokens=8, temperature=0, stop=stop, logprobs=1
    )
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason) == (wanted["text"], "stop")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == [token["token"] for token in wanted["logprobs"]]
    assert choice.logprobs.text_offset == [
        sum(len(token["token"]) for token in wanted["logprobs"][:place])
        for place in range(len(wanted["logprobs"]))
    ]


def test_what_is_not_there_is_refused_by_name(house: House) -> None:
    ask: Any = {"model": "menu", "messages": TURNS, "max_tokens": 2}
    nothing: Any = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}}
    house.client.chat.completions.create(**ask, **nothing, user="someone")
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    refused: dict[str, Any] = {
        "tools": [tool],
        "response_format": {"type": "json_object"},
        "logit_bias": {"5": 1},
        "store": True,
        "reasoning_effort": "low",
    }
    for name, value in refused.items():
        with pytest.raises(openai.BadRequestError) as told:
            house.client.chat.completions.create(**ask, **{name: value})
        assert (told.value.code, told.value.param) == ("unsupported", name)
        assert told.value.request_id
    image = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    wrong: dict[str, dict[str, Any]] = {
        "messages.0.content.0.type": {"messages": [{"role": "user", "content": image}]},
        "messages": {"messages": [{"role": "assistant", "content": "hi"}]},
        "max_tokens": {"max_completion_tokens": 3},
        "top_logprobs": {"top_logprobs": 3},
        "stream_options": {"stream_options": {"include_usage": True}},
        "n": {"n": 2, "temperature": 0},
        "unheard_of": {"extra_body": {"unheard_of": 1}},
        "x_tunery.beam": {"extra_body": {"x_tunery": {"beam": 1}}},
    }
    for param, change in wrong.items():
        with pytest.raises(openai.BadRequestError) as told:
            house.client.chat.completions.create(**ask | change)
        assert told.value.param == param
    with pytest.raises(openai.BadRequestError) as told:
        house.client.completions.create(model="menu", prompt=["hi", "hi " * 5000])
    assert (told.value.code, told.value.param) == ("context_length_exceeded", "prompt.1")
    with pytest.raises(openai.BadRequestError) as told:
        house.client.chat.completions.create(model="intents", messages=TURNS)
    assert (told.value.code, told.value.param) == ("task_mismatch", "model")
    with pytest.raises(openai.BadRequestError) as told:
        house.client.chat.completions.create(model="bert", messages=TURNS)
    assert (told.value.code, told.value.param) == ("task_mismatch", "model")


def test_who_may_ask(house: House) -> None:
    ask: Any = {"messages": TURNS, "max_tokens": 2}
    for client, model in (
        (house.other, "menu"),
        (house.client, "nobody"),
        (house.client, "llama@7"),
    ):
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(model=model, **ask)
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.AuthenticationError):
        house.client.with_options(api_key="tk_wrong").chat.completions.create(model="menu", **ask)


def test_bases_adapters_and_aliases_are_models(house: House) -> None:
    second = house.publish(house.texts, "cards")
    house.alias("current", second.id)
    cards = {card.id: card for card in house.client.models.list()}
    assert {"llama", "bert", "menu", "menu@1", "intents", "cards", "cards@1", "current"} <= set(
        cards
    )
    assert cards["llama"].x_tunery["ready"] is True
    assert cards["llama"].owned_by == "tunery"
    assert cards["current"].x_tunery["adapter_id"] == second.id
    assert cards["cards"].created == int(second.created_at.timestamp())
    assert {card.id for card in house.other.models.list()} == {"bert", "llama"}
    for name in ("llama", "llama@int8", "current", "cards@1", second.id):
        assert house.client.models.retrieve(name).id == name
    for client, name in ((house.client, "org/nothing"), (house.other, "cards")):
        with pytest.raises(openai.NotFoundError) as missing:
            client.models.retrieve(name)
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        assert missing.value.request_id


def test_an_adapter_is_deleted_unless_it_is_in_use(house: House) -> None:
    gone, held = house.publish(house.texts, "gone"), house.publish(house.texts, "held")
    deleted = house.client.models.delete("gone@1")
    assert (deleted.id, deleted.deleted, deleted.object) == ("gone@1", True, "model")
    with pytest.raises(openai.NotFoundError):
        house.client.models.retrieve(gone.id)
    house.alias("held-by", held.id)
    with pytest.raises(openai.ConflictError) as conflict:
        house.client.models.delete("held")
    assert conflict.value.code == "adapter_in_use"
    assert conflict.value.response.headers["x-should-retry"] == "false"
    assert conflict.value.response.request.headers["x-stainless-retry-count"] == "0"
    with pytest.raises(openai.BadRequestError) as base:
        house.client.models.delete("llama")
    assert (base.value.code, base.value.param) == ("unsupported", "model")


@pytest.mark.parametrize("model", ["bert", "intents"])
def test_texts_are_embedded(house: House, tiny_bases: dict[str, Base], model: str) -> None:
    texts = ["my card", "where is my order please"]
    delta = house.intents.delta if model == "intents" else None
    rows = [prepare_row(tiny_bases["bert"], Row("embedding", text, delta)) for text in texts]
    wanted = [answer.output["embedding"] for answer in Engine(tiny_bases["bert"]).predict(rows)]
    packed = house.client.embeddings.create(model=model, input=texts)
    plain = house.client.embeddings.create(model=model, input=texts, encoding_format="float")
    for answer in (packed, plain):
        assert [row.index for row in answer.data] == [0, 1]
        np.testing.assert_allclose([row.embedding for row in answer.data], wanted, atol=1e-5)
    assert plain.usage.total_tokens == plain.usage.prompt_tokens > 0
    assert plain.x_receipt["adapter_digest"] == (delta.digest if delta else None)
    for change in ({"dimensions": 4}, {"model": "llama"}):
        with pytest.raises(openai.BadRequestError) as told:
            house.client.embeddings.create(**{"model": model, "input": texts} | change)
        assert told.value.param == next(iter(change))
