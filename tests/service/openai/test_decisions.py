"""Questions as the official client asks them; our own engine is the oracle."""

import math
from typing import Any

import openai
import pytest
import torch
from openai.types.decision import Decision

from peft_engine.bases.base import Base
from peft_engine.configs.manifest import HeadSpec, ValueHeadSpec
from peft_engine.delta import Delta, save_delta
from peft_engine.serving import Engine, Row, prepare_row
from tests.service.inference.tiny import make_delta
from tests.service.openai.conftest import House

LABELS = ("card", "order", "refund")
TEXT = "where is my order please"
INTENT: Any = {
    "type": "choice",
    "name": "intent",
    "instructions": "What is it about?",
    "choices": [{"value": "refund", "description": "money comes back"}, {"value": "card"}],
}


def alone(base: Base, value: Any, delta: Delta | None, **options: Any) -> Any:
    row = prepare_row(base, Row(None, value, delta, options))
    return Engine(base).predict([row])[0].output


def scale(instructions: Any, *labels: str) -> Any:
    levels = [{"label": label} for label in labels]
    return {"type": "score", "instructions": instructions, "levels": levels}


def softmax(scores: list[float]) -> list[float]:
    return torch.tensor(scores, dtype=torch.float64).softmax(-1).tolist()


def ask(house: House, *questions: Any, model: str = "intents", **more: Any) -> Decision:
    whole: Any = {"model": model, "input": TEXT, "questions": questions} | more
    return house.client.decisions.create(**whole)


def refusal(house: House, *questions: Any, **more: Any) -> tuple[str | None, str | None]:
    with pytest.raises(openai.BadRequestError) as told:
        ask(house, *questions, **more)
    assert told.value.request_id
    return told.value.code, told.value.param


@pytest.fixture(scope="module")
def kinds(house: House, tiny_bases: dict[str, Base]) -> dict[str, Delta]:
    """Adapters with other heads than a classifier's, under the names of their tasks."""
    plain = make_delta(tiny_bases["bert"], seed=7)
    manifest = plain.manifest
    tensors = dict(plain.tensors) | {f"head:{name}": t for name, t in plain.head.items()}
    many = HeadSpec(kind="multi-label", pooling="mean", normalize=False, scale=1.0)
    value = ValueHeadSpec(pooling="mean", reading="joined", normalize=True, center=2.5, spread=0.1)
    pairs = value.model_copy(update={"reading": "apart"})
    first = {name: t[:1] if name.startswith("head:") else t for name, t in tensors.items()}
    spans = {"task": "question-answering", "labels": None}
    changes: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "topics": (tensors, {"head": many}),
        "stars": (first, {"head": value, "task": "regression", "labels": None}),
        "likeness": (first, {"head": pairs, "task": "regression", "labels": None}),
        "spans": (tensors, spans),
    }
    found = {}
    for name, (own, change) in changes.items():
        found[name] = delta = Delta.of(own, manifest.model_copy(update=change))
        house.publish(house.shelf.put_bytes(delta, save_delta(delta), name=name), name)
    return found


def test_a_classifier_chooses_among_its_labels(house: House, tiny_bases: dict[str, Base]) -> None:
    wanted = alone(tiny_bases["bert"], TEXT, house.intents.delta)["scores"]
    level: Any = {
        "type": "score",
        "instructions": "how far?",
        "levels": [{"label": n} for n in LABELS],
    }
    card: Any = {"type": "predicate", "instructions": "card"}
    named: Any = {"type": "predicate", "name": "order", "instructions": "It is about an order."}
    for _ in range(2):
        found = ask(house, INTENT, level, card, named)
    choice, score, first, second = found.answers
    offered = wanted["refund"] + wanted["card"]
    assert choice.type == "choice"
    assert choice.name == "intent"
    assert [one.value for one in choice.probabilities] == ["refund", "card"]
    assert [one.probability for one in choice.probabilities] == pytest.approx(
        [wanted["refund"] / offered, wanted["card"] / offered], abs=1e-5
    )
    assert choice.choice == max(("refund", "card"), key=wanted.__getitem__)
    assert choice.confidence == max(one.probability for one in choice.probabilities)
    assert choice.x_coverage == pytest.approx(offered, abs=1e-5)
    assert score.type == "score"
    assert [(one.label, one.value) for one in score.probabilities] == list(
        zip(LABELS, range(3), strict=True)
    )
    assert score.score == pytest.approx(wanted["order"] + 2 * wanted["refund"], abs=1e-5)
    assert (first.type, first.name) == ("predicate", None)
    assert first.probability == pytest.approx(wanted["card"], abs=1e-5)
    assert second.probability == pytest.approx(wanted["order"], abs=1e-5)
    # the text is read once, whatever is asked
    assert found.usage == ask(house, card).usage
    assert found.usage.total_tokens == found.usage.input_tokens > 0
    assert found.usage.output_tokens_details.reasoning_tokens == 0
    assert found.model == "intents@1"
    assert found.x_receipt["adapter_digest"] == house.intents.delta.digest


def test_a_classifier_knows_nothing_else(house: House, kinds: dict[str, Delta]) -> None:
    other: Any = INTENT | {"choices": [{"value": "card"}, {"value": "weather"}]}
    assert refusal(house, INTENT, other) == ("bad_input", "questions.1.choices.1.value")
    true_or_not: Any = INTENT | {"choices": [{"value": True}, {"value": False}]}
    assert refusal(house, true_or_not) == ("bad_input", "questions.0.choices.0.value")
    statement: Any = {"type": "predicate", "instructions": "It rains."}
    assert refusal(house, statement) == ("bad_input", "questions.0.instructions")
    levels: Any = {
        "type": "score",
        "instructions": "",
        "levels": [{"label": "card"}, {"label": "x"}],
    }
    assert refusal(house, levels) == ("bad_input", "questions.0.levels.1.label")
    talk = [{"role": "system", "content": "be kind"}, {"role": "user", "content": TEXT}]
    assert refusal(house, INTENT, input=talk) == ("bad_input", "input")
    assert refusal(house, INTENT, model="spans") == ("task_mismatch", "model")
    assert refusal(house, INTENT, input="hi " * 5000) == ("context_length_exceeded", "input")
    one = [{"role": "user", "content": [{"type": "input_text", "text": TEXT}]}]
    assert ask(house, INTENT, input=one) == ask(house, INTENT)


def test_labels_that_do_not_exclude_one_another(
    house: House, tiny_bases: dict[str, Base], kinds: dict[str, Delta]
) -> None:
    wanted = alone(tiny_bases["bert"], TEXT, kinds["topics"])["scores"]
    asked: list[Any] = [{"type": "predicate", "instructions": label} for label in LABELS]
    answers = ask(house, *asked, model="topics").answers
    for label, answer in zip(LABELS, answers, strict=True):
        assert answer.type == "predicate"
        assert answer.probability == pytest.approx(wanted[label], abs=1e-5)
    assert refusal(house, asked[0], INTENT, model="topics") == ("task_mismatch", "questions.1.type")


def test_a_number_stands_between_levels(
    house: House, tiny_bases: dict[str, Base], kinds: dict[str, Delta]
) -> None:
    value = alone(tiny_bases["bert"], TEXT, kinds["stars"])["value"]

    def rate(*labels: float) -> Any:
        question = scale("How many?", *(f"{label:.9f}" for label in labels))
        (found,) = ask(house, question, model="stars").answers
        assert found.type == "score"
        assert found.x_value == pytest.approx(value, abs=1e-5)
        return found

    between = rate(value - 3, value - 1, value + 3)
    assert between.score == pytest.approx(1.25, abs=1e-4)
    assert [one.probability for one in between.probabilities] == pytest.approx(
        [0, 0.75, 0.25], abs=1e-4
    )
    assert rate(value + 1, value + 2).score == 0
    assert rate(value - 2, value - 1).score == 1
    for labels in (("2", "1"), ("bad", "good"), ("1", "nan")):
        wrong = refusal(house, scale("", *labels), model="stars")
        assert wrong == ("bad_input", "questions.0.levels")
    assert refusal(house, INTENT, model="stars") == ("task_mismatch", "questions.0.type")
    assert refusal(house, scale("", "1", "2"), model="likeness") == ("task_mismatch", "model")


@pytest.mark.parametrize("model", ["menu", "llama"])
def test_a_model_that_writes_is_asked_in_words(
    either: House, tiny_bases: dict[str, Base], model: str
) -> None:
    delta = either.texts.delta if model == "menu" else None
    statement: Any = {"type": "predicate", "instructions": "It is late."}
    rating: Any = {
        "type": "score",
        "name": "urgency",
        "instructions": [{"type": "input_text", "text": "How urgent?"}],
        "levels": [{"label": "low"}, {"label": "high", "description": "now"}],
    }
    both: Any = [{"value": True}, {"value": False}]
    bare: Any = {"type": "choice", "instructions": "", "choices": both}
    named: Any = INTENT | {"choices": [{"value": "refund"}, {"value": "card"}]}
    found = ask(either, INTENT, statement, rating, bare, named, model=model)
    prompts = [
        f"{TEXT}\n\nWhat is it about?\nAnswer with one of these:\n"
        "- refund: money comes back\n- card",
        f"{TEXT}\n\nIs this true? It is late.\nAnswer yes or no.",
        f"{TEXT}\n\nHow urgent?\nAnswer with one level, from the lowest to the highest:\n"
        "- low\n- high: now",
        TEXT,
        f"{TEXT}\n\nWhat is it about?",
    ]
    offered = [["refund", "card"], ["yes", "no"], ["low", "high"], ["true", "false"]]
    offered.append(offered[0])
    wanted, covered, tokens = [], [], 0
    for prompt, answers in zip(prompts, offered, strict=True):
        row = prepare_row(tiny_bases["llama"], Row(None, prompt, delta, {"answers": answers}))
        tokens += row.input_tokens
        scores = Engine(tiny_bases["llama"]).predict([row])[0].output["log_likelihoods"]
        wanted.append(softmax(scores))
        covered.append(math.fsum(map(math.exp, scores)))
    choice, predicate, score, boolean, bare_choice = found.answers
    assert choice.type == bare_choice.type == "choice"
    for place, one_of in ((0, choice), (4, bare_choice)):
        shares = [one.probability for one in one_of.probabilities]
        assert shares == pytest.approx(wanted[place], abs=1e-5)
    assert choice.choice == offered[0][wanted[0].index(max(wanted[0]))]
    assert predicate.type == "predicate"
    assert predicate.probability == pytest.approx(wanted[1][0], abs=1e-5)
    assert score.type == "score"
    assert score.name == "urgency"
    assert score.score == pytest.approx(wanted[2][1], abs=1e-5)
    assert boolean.type == "choice"
    assert [one.value for one in boolean.probabilities] == [True, False]
    assert boolean.choice is (wanted[3][0] >= wanted[3][1])
    assert [answer.x_coverage for answer in found.answers] == pytest.approx(covered, rel=1e-3)
    assert found.usage.input_tokens == tokens
    assert found.x_receipt["adapter_digest"] == (delta.digest if delta else None)
    assert found.x_receipt["engine"] != "vllm"


def test_a_conversation_is_asked_about(house: House, tiny_bases: dict[str, Base]) -> None:
    talk: Any = [
        {"role": "developer", "content": "be kind"},
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_text", "text": "hello"},
                {"type": "input_json", "data": {"order": 7}},
            ],
        },
        {"role": "assistant", "content": [{"type": "output_text", "text": "what is it"}]},
    ]
    statement: Any = {"type": "predicate", "instructions": "It is late."}
    (found,) = ask(house, statement, model="menu", input=talk).answers
    turns = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": 'hello\n{"order":7}'},
        {"role": "assistant", "content": "what is it"},
        {"role": "user", "content": "Is this true? It is late.\nAnswer yes or no."},
    ]
    scores = alone(
        tiny_bases["llama"], {"messages": turns}, house.texts.delta, answers=["yes", "no"]
    )["log_likelihoods"]
    assert found.type == "predicate"
    assert found.probability == pytest.approx(softmax(scores)[0], abs=1e-5)


def test_wrong_questions_are_refused_with_their_place(house: House) -> None:
    one = [{"value": "card"}]
    many = [{"value": str(number)} for number in range(256)]
    choices: list[tuple[str, Any]] = [
        ("choices", one),
        ("choices", one * 2),
        ("choices", [{"value": True}, {"value": "true"}]),
        ("choices", many),
        ("choices.0.value", [{"value": 1}, *one]),
        ("choices.1.colour", [{"value": "x"}, {"value": "y", "colour": 1}]),
    ]
    for where, value in choices:
        assert refusal(house, INTENT | {"choices": value}) == ("bad_input", f"questions.0.{where}")
    questions: list[tuple[str, Any]] = [
        ("questions.0.levels", scale("", *map(str, range(11)))),
        ("questions.0", {"type": "essay", "instructions": ""}),
        ("questions.0.instructions", {"type": "predicate"}),
    ]
    for param, question in questions:
        assert refusal(house, question) == ("bad_input", param)
    deep: Any = {}
    for _ in range(40):
        deep = {"in": deep}
    parts: list[tuple[str, Any]] = [
        ("input.0.content.0", {"type": "input_image", "image_url": "data:,"}),
        ("input.0.content.0.data", {"type": "input_json", "data": deep}),
        ("input.0.content.0.text", {"type": "input_text", "text": 7}),
    ]
    for param, part in parts:
        talk = [{"role": "user", "content": [part]}]
        assert refusal(house, INTENT, input=talk) == ("bad_input", param)
    call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
    assert refusal(house, INTENT, input=[call]) == ("bad_input", "input.0.type")
    wrong: list[tuple[str, str, dict[str, Any]]] = [
        ("unsupported", "prompt_cache_key", {"prompt_cache_key": "k"}),
        ("task_mismatch", "model", {"model": "bert"}),
        ("context_length_exceeded", "questions.0", {"model": "menu", "input": "hi " * 5000}),
    ]
    for code, param, more in wrong:
        assert refusal(house, INTENT, **more) == (code, param)


def test_questions_have_bounds(house: House) -> None:
    many = [{"type": "predicate", "instructions": "card"}] * 300
    assert refusal(house, *many, model="menu") == ("too_many_rows", "questions")
    assert len(ask(house, *many).answers) == 300
    with pytest.raises(openai.APIStatusError) as large:
        ask(house, *many[:200], model="menu", input="a card " * 1000)
    assert (large.value.status_code, large.value.param) == (413, "questions")
    with pytest.raises(openai.NotFoundError) as missing:
        ask(house, INTENT, model="nobody")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        house.other.decisions.create(model="intents", input=TEXT, questions=[INTENT])
