"""One batch of everything equals everything one by one."""

from typing import Any

import pytest
import torch

from peft_engine.bases.base import Base
from peft_engine.configs.manifest import AnyHeadSpec, ChoiceHeadSpec, SpanHeadSpec
from peft_engine.configs.methods import LoraConfig
from peft_engine.decoding import DecodingLimits
from peft_engine.delta import Delta
from peft_engine.errors import PlanError, RowError
from peft_engine.parts.batching import Batch
from peft_engine.plan import Actor, Plan
from peft_engine.records import check_record
from peft_engine.serving import Engine, PreparedRow, Row, calibrate, prepare_row
from peft_engine.serving import engine as engine_module
from peft_engine.tasks.text_classification import TextClassification
from peft_engine.tasks.text_generation import TextGeneration
from tests.engine.conftest import DEVICE, make_delta

LABELS = (("no", "yes"), ("a", "b", "c"), tuple("abcdefg"))


def numbers(output: Any) -> list[float]:
    """Every number of an answer, in order."""
    if isinstance(output, dict):
        return [n for key in sorted(output) for n in numbers(output[key])]
    if isinstance(output, list):
        return [n for item in output for n in numbers(item)]
    return [float(output)] if isinstance(output, int | float) else []


def test_twenty_rows_of_three_adapters_and_the_base_equal_single_rows(bert: Base) -> None:
    deltas = [
        make_delta(bert, seed=i, labels=labels, config=LoraConfig(r=2 + i))
        for i, labels in enumerate(LABELS)
    ]
    rows = []
    for i in range(20):
        delta = deltas[i % 4] if i % 4 < 3 else None
        options = {"labels": ["my card", "order late"]} if i % 8 == 7 else {}
        rows.append(prepare_row(bert, Row(None, "where is my card " * (1 + i % 5), delta, options)))
    engine = Engine(bert)
    together = engine.predict(rows)
    for row, mixed in zip(rows, together, strict=True):
        (alone,) = Engine(bert).predict([row])
        assert alone.output.keys() == mixed.output.keys()
        assert alone.output.get("label") == mixed.output.get("label")
        assert numbers(alone.output) == pytest.approx(numbers(mixed.output), abs=1e-5)
        assert mixed.input_tokens == row.input_tokens
    widths = {len(answer.output["scores"]) for answer in together if "scores" in answer.output}
    assert widths == {2, 3, 7}


def test_rows_answered_apart_are_those_answered_together(bert: Base) -> None:
    deltas = [make_delta(bert, seed=seed, labels=LABELS[seed]) for seed in (1, 2)]
    asked = zip(
        ("my card", "a refund", "late", "order", "a"), [*deltas, None, *deltas], strict=True
    )
    rows = [prepare_row(bert, Row(None, text, delta)) for text, delta in asked]
    engine = Engine(bert)
    together = engine.predict(rows)
    engine.mixes = False
    for mixed, apart in zip(together, engine.predict(rows), strict=True):
        assert mixed.output.get("label") == apart.output.get("label")
        assert numbers(mixed.output) == pytest.approx(numbers(apart.output), abs=1e-5)


@pytest.mark.parametrize("labels", [None, LABELS[0]], ids=["embedding", "head"])
def test_an_answer_that_is_no_number_is_refused(bert: Base, labels: Any) -> None:
    wild = make_delta(bert, seed=1, labels=LABELS[0])
    for tensor in wild.tensors.values():
        tensor.fill_(1e30)
    row = prepare_row(bert, Row(None if labels else "embedding", "my card", wild))
    with pytest.raises(RowError) as caught:
        Engine(bert).predict([row, prepare_row(bert, Row(None, "my card"))])
    assert caught.value.code == "answer_not_finite"


def test_calibration_leaves_the_engine_as_it_was(any_base: Base) -> None:
    engine = Engine(any_base)
    found = calibrate(engine)
    assert found.mixed_seconds > 0
    assert found.mixes == (found.mixed_seconds <= found.split_seconds)
    assert engine.mixes
    assert not engine._actors


def test_generated_rows_are_what_they_are_alone(llama: Base) -> None:
    deltas = [make_delta(llama, seed=seed, strength=0.1) for seed in (1, 2, 3)]
    rows = [
        prepare_row(
            llama,
            Row(None, f"prompt {i}", deltas[i % 4] if i % 4 < 3 else None, {"max_new_tokens": 8}),
        )
        for i in range(8)
    ]
    together = Engine(llama).predict(rows)
    for row, mixed in zip(rows, together, strict=True):
        assert Engine(llama).predict([row])[0].output == mixed.output
        assert mixed.output["tokens"] == mixed.output_tokens


def with_head(delta: Delta, task: str, head: AnyHeadSpec, rows: int) -> Delta:
    """The same delta with the head of another task."""
    width = delta.tensors["head:weight"].shape[1]
    generator = torch.Generator().manual_seed(5)
    own = {
        "head:weight": torch.randn(rows, width, generator=generator),
        "head:bias": torch.randn(rows, generator=generator),
    }
    manifest = delta.manifest.model_copy(update={"task": task, "head": head, "labels": None})
    tensors = {name: tensor.cpu() for name, tensor in delta.tensors.items()}
    return Delta.of(tensors | own, manifest).to(DEVICE)


def large_rows(base: Base) -> dict[str, PreparedRow]:
    own = make_delta(base, seed=1, labels=LABELS[0])
    reads = with_head(own, "question-answering", SpanHeadSpec(scale=1.0, abstains=False), 2)
    chooses = with_head(own, "multiple-choice", ChoiceHeadSpec(pooling="mean", reading="joined"), 1)
    question = "where is my card"
    context, labels = "the order is late and lost " * 60, [f"card {n}" for n in range(60)]
    return {
        "windows": prepare_row(base, Row(None, {"question": question, "context": context}, reads)),
        "choices": prepare_row(base, Row(None, {"question": question, "choices": labels}, chooses)),
        "labels": prepare_row(base, Row(None, question, options={"labels": labels})),
        "one row": prepare_row(base, Row("embedding", question, own)),
    }


@pytest.mark.parametrize("kind", ["windows", "choices", "labels", "one row"])
def test_a_large_row_in_parts_is_the_row_in_one(
    bert: Base, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = large_rows(bert)[kind]
    (whole,) = Engine(bert).predict([row])
    sizes = list[int]()
    forward = engine_module.hidden_states

    def note(base: Base, batch: Batch) -> torch.Tensor:
        sizes.append(batch.input_ids.numel())
        return forward(base, batch)

    monkeypatch.setattr(engine_module, "hidden_states", note)
    engine = Engine(bert)
    small = prepare_row(bert, Row(None, "my card", make_delta(bert, seed=2, labels=LABELS[1])))
    (alone,) = Engine(bert).predict([small])
    sizes.clear()
    parts, pauses = engine.predict_in_parts(row, most_tokens=96), 0
    while True:
        own = len(sizes)
        try:
            next(parts)
        except StopIteration as ended:
            found = ended.value
            break
        assert 0 < sum(sizes[own:]) <= 96
        pauses += 1
        (between,) = engine.predict([small])  # another delta has its turn on the same base
        assert numbers(between.output) == pytest.approx(numbers(alone.output), abs=1e-6)
    assert pauses == 1 if kind == "one row" else pauses > 2
    assert found.input_tokens == whole.input_tokens
    assert numbers(found.output) == pytest.approx(numbers(whole.output), abs=1e-5)


def test_labels_of_all_rows_are_tokenized_once(bert: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, counted = Engine(bert), list[int]()
    encode = TextClassification.encode

    def note(self: TextClassification, base: Base, records: Any, **more: Any) -> Any:
        counted.append(len(records))
        return encode(self, base, records, **more)

    monkeypatch.setattr(TextClassification, "encode", note)
    sets = [[f"card_{place}" for place in range(size)] for size in (5, 7)]
    rows = [Row(None, "my card", options={"labels": own}) for own in (*sets, *sets, *sets)]
    prepared = [engine.prepare(row) for row in rows]
    assert sorted(size for size in counted if size > 1) == [5, 7]
    assert prepared == [prepare_row(bert, row) for row in rows]


def test_continuations_of_a_row_that_has_begun_come_before_rows_that_have_not(llama: Base) -> None:
    limits = DecodingLimits(rows=4, cache_tokens=4 * 64)
    writer = Engine(llama, limits=limits).writer
    short = prepare_row(llama, Row(None, "card", options={"max_new_tokens": 2}))
    options = {"max_new_tokens": 8, "n": 6, "temperature": 1.0}
    many = writer.prepare(prepare_row(llama, Row(None, "card", options=options)))
    writer.begin(writer.prepare(short))
    assert writer.has_room(many.row)
    writer.begin(many)
    steps = 0
    while not many.is_over and steps < 100:  # there is always somebody who would take a place
        while writer.has_room(short):
            writer.begin(writer.prepare(short))
        writer.step()
        steps += 1
    assert many.is_over
    alone = Engine(llama).predict([many.row])[0].output
    assert many.output(llama) == alone


def test_an_answer_is_the_softmax_of_the_head(bert: Base) -> None:
    delta = make_delta(bert, seed=1, labels=("no", "yes"), strength=0.0)
    (answer,) = Engine(bert).predict([prepare_row(bert, Row(None, "my card", delta))])
    with torch.no_grad():
        encoded = bert.text.encode_inputs(["my card"], max_length=20)[0].input_ids
        ids = torch.tensor([encoded], device=bert.device)
        pooled = bert.trunk(input_ids=ids).last_hidden_state.mean(1)
        features = torch.nn.functional.normalize(pooled, dim=-1)
        logits = features @ delta.head["weight"].T + delta.head["bias"]
    shares = logits.softmax(-1)[0].tolist()
    assert answer.output["scores"] == pytest.approx({"no": shares[0], "yes": shares[1]}, abs=1e-6)
    assert answer.output["score"] == max(answer.output["scores"].values())


def test_embeddings_of_adapters_and_the_base_stand_in_one_batch_with_answers(bert: Base) -> None:
    deltas = [make_delta(bert, seed=seed, labels=("no", "yes")) for seed in (1, 2)]
    texts = ["where is my card", {"text": "my card", "text_pair": "order late"}]
    rows = [
        prepare_row(bert, Row(task, text, delta))
        for text in texts
        for delta in (*deltas, None)
        for task in ("embedding", None)
    ]
    engine = Engine(bert)
    together = engine.predict(rows)
    for row, mixed in zip(rows, together, strict=True):
        (alone,) = Engine(bert).predict([row])
        assert alone.output.keys() == mixed.output.keys()
        assert numbers(alone.output) == pytest.approx(numbers(mixed.output), abs=1e-5)
    embeddings = torch.tensor([a.output["embedding"] for a in together[::2]])
    assert torch.allclose(embeddings.norm(dim=-1), torch.ones(6), atol=1e-5)
    assert [set(a.output) for a in together[1:6:2]] == [
        {"label", "score", "scores"},
        {"label", "score", "scores"},
        {"embedding"},
    ]
    assert torch.pdist(embeddings[:3]).min() > 1e-2  # each delta really acts


def test_an_embedding_is_the_normalised_mean_under_the_delta(bert: Base) -> None:
    delta = make_delta(bert, seed=1, labels=("no", "yes"))
    engine = Engine(bert)
    (answer,) = engine.predict([prepare_row(bert, Row("embedding", "my card", delta))])
    encoded = bert.text.encode_inputs(["my card"], max_length=20)[0].input_ids
    ids = torch.tensor([encoded], device=bert.device)
    plan = Plan.build([Actor.of(delta)])
    with torch.no_grad(), engine._router.use(plan):
        pooled = bert.trunk(input_ids=ids).last_hidden_state.mean(1)
    expected = torch.nn.functional.normalize(pooled, dim=-1)[0].tolist()
    assert answer.output["embedding"] == pytest.approx(expected, abs=1e-6)


def test_only_encoders_give_embeddings(bert: Base, llama: Base) -> None:
    writer = make_delta(llama, seed=1)
    for delta in (None, writer):
        with pytest.raises(RowError) as caught:
            prepare_row(llama, Row("embedding", "hi", delta))
        assert (caught.value.code, caught.value.param) == ("task_mismatch", "task")
    with pytest.raises(RowError) as caught:
        prepare_row(bert, Row("embedding", "hi", options={"labels": ["a", "b"]}))
    assert caught.value.code == "bad_option"


def test_a_delta_that_was_replaced_under_its_digest_is_not_answered_from_memory(bert: Base) -> None:
    engine = Engine(bert)
    first = make_delta(bert, seed=1, labels=("no", "yes"))
    second = make_delta(bert, seed=2, labels=("no", "yes"))
    posing = type(first)(second.tensors, second.manifest, first.digest)
    row = Row(None, "my card", first)
    before = engine.predict([prepare_row(bert, row)])[0].output
    after = engine.predict([prepare_row(bert, Row(None, "my card", posing))])[0].output
    honest = Engine(bert).predict([prepare_row(bert, Row(None, "my card", second))])[0].output
    assert after == honest != before


@pytest.mark.parametrize(
    ("row", "code", "param"),
    [
        (Row("regression", "text"), "task_mismatch", "task"),
        (Row(None, 7), "bad_input", "input"),
        (Row(None, "card " * 300), "too_long", "input"),
        (Row(None, "card", options={"labels": ["one"]}), "bad_option", "options.labels"),
        (Row(None, "card", options={"labels": "ab"}), "bad_option", "options.labels"),
        (Row(None, "card", options={"labels": ["a", "b", "a"]}), "bad_option", "options.labels"),
        (Row(None, "card", options={"temperature": 1}), "bad_option", "options.temperature"),
    ],
)
def test_encoder_rows_that_cannot_be_answered(bert: Base, row: Row, code: str, param: str) -> None:
    with pytest.raises(RowError) as caught:
        prepare_row(bert, row)
    assert (caught.value.code, caught.value.param) == (code, param)


@pytest.mark.parametrize(
    ("value", "options", "code", "param"),
    [
        ("", {}, "bad_input", "input"),
        ({"messages": []}, {}, "bad_input", "input"),
        ({"messages": [{"role": "robot", "content": "a"}]}, {}, "bad_input", "input.messages.0"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, {}, "bad_input", "input.messages.0"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, {}, "bad_input", "input.messages"),
        ("x" * 300, {}, "too_long", "input"),
        ("hi", {"max_new_tokens": 4000}, "too_long", "options.max_new_tokens"),
        ("hi", {"max_new_tokens": 0}, "bad_option", "options.max_new_tokens"),
        ("hi", {"max_new_tokens": True}, "bad_option", "options.max_new_tokens"),
        ("hi", {"temperature": float("nan")}, "bad_option", "options.temperature"),
        ("hi", {"top_p": 0}, "bad_option", "options.top_p"),
        ("hi", {"stop": [1]}, "bad_option", "options.stop"),
        ("hi", {"stop": 5}, "bad_option", "options.stop"),
        ("hi", {"stop": False}, "bad_option", "options.stop"),
        ("hi", {"beams": 4}, "bad_option", "options.beams"),
    ],
)
def test_prompts_that_cannot_be_answered(
    llama: Base, value: Any, options: dict[str, Any], code: str, param: str
) -> None:
    with pytest.raises(RowError) as caught:
        prepare_row(llama, Row(None, value, options=options))
    assert (caught.value.code, caught.value.param) == (code, param)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_turns_of_a_tool_are_read_as_training_reads_them(
    family: str, request: pytest.FixtureRequest
) -> None:
    base: Base = request.getfixturevalue(family)
    turns = [("user", "card"), ("assistant", "call"), ("tool", "lost"), ("assistant", "it is late")]
    messages = [{"role": role, "content": text} for role, text in turns]
    record, _ = check_record("text-generation", {"messages": messages})
    example = TextGeneration().encode(base, [record], labels=None, max_length=120)[-1]
    (prompt,) = prepare_row(base, Row(None, {"messages": messages[:-1]})).examples
    if base.text.answer_start is None:
        assert example.input_ids[: prompt.tokens] == prompt.input_ids
        assert example.target[: prompt.tokens][-1] is False
        assert example.target[prompt.tokens] is True
    else:
        assert example.rows[0].input_ids == prompt.input_ids


def test_a_delta_of_another_base_never_answers(bert: Base, llama: Base) -> None:
    with pytest.raises(RowError) as caught:
        prepare_row(llama, Row(None, "hi", make_delta(bert, seed=1, labels=("a", "b"))))
    assert caught.value.code == "base_mismatch"


def test_a_delta_on_another_device_is_refused_in_words(bert: Base) -> None:
    """As training returns it, where the base is on a GPU; here it is the other way round."""
    delta = make_delta(bert, seed=1, labels=("a", "b")).to(torch.device("meta"))
    with pytest.raises(PlanError, match=r"on meta and its base on .*delta\.to\(base\.device\)"):
        Engine(bert).predict([prepare_row(bert, Row(None, "my card", delta))])
