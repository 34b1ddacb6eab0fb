"""The certificate passes what is sound and catches every planted fault."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from peft_engine import certificate as subject
from peft_engine.bases.base import Base, load_base
from peft_engine.certificate import Certificate, certify
from peft_engine.delta import Delta, save_delta
from peft_engine.router import Router
from peft_engine.serving import Engine, prepare_row
from peft_engine.tasks.text_generation import TextGeneration
from tests.engine.conftest import make_delta
from tests.engine.derived import derived_from
from tests.engine.task_sets import SETS
from tests.engine.test_training import job, run

RECORDS = [{"prompt": f"word {number}", "completion": "another word"} for number in range(20)]


def certificate(
    base: Base, delta: Delta, records: Any = RECORDS, *, blob: bytes | None = None, **more: Any
) -> Certificate:
    router = Router(base.trunk)
    served = more.pop("served", None) or Engine(base, router=router)
    blob = save_delta(delta) if blob is None else blob
    return certify(delta, blob, records, base=base, router=router, served=served, **more)


def broken(result: Certificate) -> str:
    assert not result.passed
    assert result.reason
    return result.reason


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_sound_text_passes(family: str, request: pytest.FixtureRequest) -> None:
    base: Base = request.getfixturevalue(family)
    result = certificate(base, make_delta(base, seed=1))
    assert result.passed, result
    assert result.rows == 16
    assert result.digest


@pytest.mark.parametrize("name", list(SETS))
def test_sound_answers_of_every_task_pass(name: str, bert: Base) -> None:
    task, splits = SETS[name]
    delta = run(bert, job(task, epochs=1, max_length=48), splits).delta
    assert delta is not None
    result = certificate(bert, delta, splits["test"])
    assert result.passed, result
    assert result.rows > 0
    assert result.largest_difference < 1e-4


def test_rows_of_plain_text_cannot_be_asked(llama: Base) -> None:
    result = certificate(llama, make_delta(llama, seed=1), [{"text": "some text"}])
    assert (result.passed, result.rows) == (True, 0)


def test_a_swapped_file_is_caught(llama: Base) -> None:
    other = save_delta(make_delta(llama, seed=2))
    assert "the file holds" in broken(certificate(llama, make_delta(llama, seed=1), blob=other))


def test_a_damaged_file_is_caught(llama: Base) -> None:
    delta = make_delta(llama, seed=1)
    blob = save_delta(delta)
    broken(certificate(llama, delta, blob=blob[:-8] + bytes(8)))
    broken(certificate(llama, delta, blob=blob[:100]))


Fault = Callable[[Engine, pytest.MonkeyPatch], None]


def wrong_scale(served: Engine, patch: pytest.MonkeyPatch) -> None:
    actor = served._actor

    def doubled(delta: Delta | None) -> Any:
        found = actor(delta)
        if found is None or not found.configs:
            return found
        config: Any = found.configs["lora"]
        return replace(found, configs={"lora": config.model_copy(update={"alpha": 64.0})})

    patch.setattr(served, "_actor", doubled)
    patch.setattr(served.writer, "_actor_of", doubled)


def wrong_delta(served: Engine, patch: pytest.MonkeyPatch) -> None:
    """Every row gets the delta of its neighbour."""
    actor, seen = served._actor, list[Delta]()

    def swapped(delta: Delta | None) -> Any:
        if delta is not None and all(delta is not other for other in seen):
            seen.append(delta)
        return actor(seen[-1] if delta is not None and delta is not seen[-1] else None)

    patch.setattr(served, "_actor", swapped)
    patch.setattr(served.writer, "_actor_of", swapped)


def no_delta(served: Engine, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(served, "_actor", lambda _: None)
    patch.setattr(served.writer, "_actor_of", lambda _: None)


def wrong_template(served: Engine, patch: pytest.MonkeyPatch) -> None:
    """The prompt is read with another beginning, though the digest says nothing of it."""
    encode = served.base.text.encode_conversation
    calls: list[int] = []

    def otherwise(messages: Any) -> Any:
        calls.append(1)
        turns = encode(messages)
        if messages[-1]["role"] == "assistant":  # training
            return turns
        return [replace(turns[0], input_ids=[7, *turns[0].input_ids]), *turns[1:]]

    patch.setattr(served.base.text, "encode_conversation", otherwise)


@pytest.mark.parametrize("fault", [wrong_scale, wrong_delta, no_delta, wrong_template])
def test_a_planted_fault_of_text_is_caught(
    fault: Fault, llama: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Engine(llama, router=Router(llama.trunk))
    fault(served, monkeypatch)
    broken(certificate(llama, make_delta(llama, seed=1), served=served))


@pytest.mark.parametrize("fault", [wrong_scale, no_delta])
def test_a_planted_fault_of_answers_is_caught(
    fault: Fault, bert: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Engine(bert, router=Router(bert.trunk))
    fault(served, monkeypatch)
    delta = make_delta(bert, seed=3, labels=("a", "b"))
    records = [{"text": f"my card {n}", "label": "a"} for n in range(8)]
    broken(certificate(bert, delta, records, served=served))


@pytest.mark.parametrize("fault", [wrong_scale, wrong_delta, no_delta])
def test_a_planted_fault_is_caught_within_the_bound_of_int8_too(
    fault: Fault, llama: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = derived_from(llama, "int8")
    delta = make_delta(base, seed=1)
    sound = certificate(base, delta)
    assert (sound.passed, sound.tolerance) == (True, 0.1)
    served = Engine(base, router=Router(base.trunk))
    fault(served, monkeypatch)
    broken(certificate(base, delta, served=served))


@pytest.mark.parametrize("fault", [wrong_scale, no_delta])
def test_a_planted_fault_of_answers_is_caught_on_int8_too(
    fault: Fault, bert: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = derived_from(bert, "int8")
    served = Engine(base, router=Router(base.trunk))
    fault(served, monkeypatch)
    delta = make_delta(base, seed=3, labels=("a", "b"))
    records = [{"text": f"my card {n}", "label": "a"} for n in range(8)]
    broken(certificate(base, delta, records, served=served))


def test_rounding_is_allowed_what_it_makes_of_a_row_and_no_more(
    bert: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no tolerance of its own, a quantized base has the one that nudges show."""
    monkeypatch.setattr(subject, "_SAME_PRECISION_TOLERANCE", 0.0)
    monkeypatch.setattr(subject, "_ROUNDED_TOLERANCE", {})
    records = [{"text": f"my card {n}", "label": "a"} for n in range(8)]
    exact = certificate(bert, make_delta(bert, seed=3, labels=("a", "b")), records)
    assert exact.tolerance == 0.0
    base = derived_from(bert, "int8")
    delta = make_delta(base, seed=3, labels=("a", "b"))
    found = certificate(base, delta, records)
    # where no row differs, as on CUDA, no row is asked again
    assert (found.tolerance > 0) == (found.largest_difference > 0 or base.device.type == "cpu")
    assert found.tolerance < 0.05
    served = Engine(base, router=Router(base.trunk))
    no_delta(served, monkeypatch)
    broken(certificate(base, delta, records, served=served))
    assert not base.model.get_input_embeddings()._forward_hooks  # type: ignore[operator]


def test_another_precision_is_told_and_a_wrong_one_is_caught(
    llama: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained in fp32: served in bf16 it passes only within the wider bound, and says so."""
    half = load_base(
        llama.reference, name="llama", models_dir=llama.info.directory.parent, precision="bf16"
    )
    weak = make_delta(llama, seed=1, strength=0.01)
    result = certificate(llama, weak, served=Engine(half))
    assert (result.trained_precision, result.served_precision) == ("fp32", "bf16")
    assert result.tolerance == 0.1
    # A base that claims fp32 and computes in bf16 is held to the bound of fp32.
    lying = replace(half, precision="fp32")
    strict = certificate(llama, make_delta(llama, seed=1, strength=1.0), served=Engine(lying))
    assert strict.tolerance == 1e-3
    broken(strict)
    assert torch.bfloat16 in {weight.dtype for weight in half.model.parameters()}


@pytest.mark.parametrize("served_in", ["fp32", "bf16"])
def test_bf16_is_allowed_what_it_rounds_and_no_more(
    served_in: str, llama: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no tolerance of its own, sound rows pass by what nudges show, and no fault does."""
    monkeypatch.setattr(subject, "_SAME_PRECISION_TOLERANCE", 0.0)
    monkeypatch.setattr(subject, "_OTHER_PRECISION_TOLERANCE", 0.0)
    half = load_base(
        llama.reference, name="llama", models_dir=llama.info.directory.parent, precision="bf16"
    )
    delta = make_delta(half, seed=1, strength=0.3)
    base = half if served_in == "bf16" else llama
    router = Router(base.trunk)
    result = certificate(half, delta, served=Engine(base, router=router))
    assert result.passed, result
    for fault in (wrong_scale, no_delta, wrong_template):
        served = Engine(base, router=router)
        with monkeypatch.context() as patch:
            fault(served, patch)
            broken(certificate(half, delta, served=served))


def test_rows_with_turns_of_a_tool_are_certified(llama: Base) -> None:
    turns = [("user", "a card"), ("assistant", "call"), ("tool", "found"), ("assistant", "here")]
    record = {"messages": [{"role": role, "content": text} for role, text in turns]}
    result = certificate(llama, make_delta(llama, seed=1), [record] * 3)
    assert (result.passed, result.rows) == (True, 3)


def test_pairs_that_are_read_apart_are_certified_by_the_length_of_each(sentence_bert: Base) -> None:
    words = ["card", "order", "money", "late", "new"]
    rows = [
        {"text": f"{words[i % 5]} " * 30, "text_pair": "refund " * 29, "value": float(i % 3)}
        for i in range(12)
    ]
    delta = run(sentence_bert, job("regression", epochs=1, max_length=48), {"train": rows}).delta
    assert delta is not None
    result = certificate(sentence_bert, delta, rows)
    assert (result.passed, result.rows) == (True, 12)


def test_a_context_of_more_windows_than_are_served_is_left_out(bert: Base) -> None:
    long = {"question": "where", "context": "my card is late " * 1200, "answers": []}
    short = {"question": "where", "context": "my card", "answers": [{"text": "card", "start": 3}]}
    task = job("question-answering", epochs=1, max_length=24)
    delta = run(bert, task, {"train": [short] * 8}).delta
    assert delta is not None
    result = certificate(bert, delta, [long, short])
    assert (result.passed, result.rows) == (True, 1)


def test_rows_that_leave_no_room_for_the_words_to_compare_are_left_out(llama: Base) -> None:
    """Training takes them whole: their answers are shorter than what is compared."""
    long = {"prompt": "x" * (llama.max_length - 15), "completion": "y"}
    short = make_delta(llama, seed=1)
    manifest = short.manifest.model_copy(update={"max_length": llama.max_length})
    (example,) = TextGeneration().encode(llama, [long], labels=None, max_length=llama.max_length)
    assert example.cut_tokens == 0
    result = certificate(llama, Delta.of(short.tensors, manifest), [long, *RECORDS[:3]])
    assert (result.passed, result.rows) == (True, 3)


def test_a_row_that_serving_refuses_for_another_reason_fails(bert: Base) -> None:
    delta = make_delta(bert, seed=3, labels=("a", "b"))
    records = [{"text": "my card", "text_pair": 7, "label": "a"}]
    assert "text_pair must be a text" in broken(certificate(bert, delta, records))


def test_rows_are_taken_over_the_whole_split(llama: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def noted(base: Base, row: Any) -> Any:
        asked.append(row.input["prompt"])
        return prepare_row(base, row)

    monkeypatch.setattr(subject, "prepare_row", noted)
    records = [{"prompt": str(number), "completion": "x"} for number in range(31)]
    certificate(llama, make_delta(llama, seed=1), records)
    assert [int(prompt) for prompt in asked] == [number * 31 // 16 for number in range(16)]
