"""Derived bases in an inference process: loaded on demand, once, within a budget, and named."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from core.settings import Settings
from core.storage import derived_key, open_store
from inference import served
from peft_engine.bases.base import Base
from peft_engine.compression.derive import load_derived, make_plan, name_rows, plan_name
from peft_engine.compression.pruning import Calibration
from peft_engine.configs import BaseConfig
from peft_engine.parts.batching import TokenRow
from peft_engine.serving import Engine, Row, prepare_row
from tests.service.inference.conftest import Process, Shelf, Start, wait_until
from tests.service.inference.tiny import served_bytes


@pytest.fixture(scope="session")
def derived(tiny_bases: dict[str, Base]) -> dict[str, Base]:
    """Oracles of our own."""
    asked = [("bert", "int8"), ("bert", "nf4"), ("llama", "int8")]
    return {
        f"{name}@{scheme}": load_derived(tiny_bases[name].info, BaseConfig.parse(scheme))
        for name, scheme in asked
    }


def text_row(base: str, **more: Any) -> dict[str, Any]:
    return {"input": {"text": "where is my card"}, "base_model": base, **more}


def names(process: Process) -> list[str]:
    return [base["name"] for base in process.client.get("/bases").json()]


def test_an_adapter_of_a_derived_base_is_answered_on_it(
    process: Process, settings: Settings, derived: dict[str, Base]
) -> None:
    base = derived["bert@int8"]
    stored = Shelf(open_store(settings), derived).put("bert@int8", seed=1)
    rows = [
        text_row("bert@int8", task="text-classification", delta=stored.reference),
        text_row("bert", task="embedding"),
        text_row("bert@int8", task="embedding"),
    ]
    answer = process.predict(rows)
    oracle = Engine(base)
    asked = Row("text-classification", {"text": "where is my card"}, stored.delta)
    (alone,) = oracle.predict([prepare_row(base, asked)])
    assert answer["outputs"][0]["scores"] == pytest.approx(alone.output["scores"], abs=2e-2)
    assert answer["outputs"][1] != answer["outputs"][2]
    receipts = answer["receipts"]
    assert [receipt["base_model"] for receipt in receipts] == ["bert@int8", "bert", "bert@int8"]
    assert receipts[0]["base_fingerprint"] == base.fingerprint != receipts[1]["base_fingerprint"]
    (listed,) = [b for b in process.client.get("/bases").json() if b["name"] == "bert@int8"]
    assert (listed["parent"], listed["ready"]) == ("bert", True)
    assert listed["parent_fingerprint"] == receipts[1]["base_fingerprint"]
    assert listed["bytes"] == base.bytes
    assert process.client.get("/readyz").status_code == 200


def test_a_delta_of_one_base_is_refused_on_another(
    process: Process, settings: Settings, derived: dict[str, Base]
) -> None:
    stored = Shelf(open_store(settings), derived).put("bert@int8", seed=2)
    for base in ("bert", "bert@nf4"):
        row = text_row(base, task="text-classification", delta=stored.reference)
        error = process.error([row], 400)
        assert error["code"] == "base_mismatch"
        assert "trained on bert@int8" in error["message"]


def test_text_is_written_on_a_derived_base(process: Process) -> None:
    row = {
        "input": {"prompt": "hello"},
        "base_model": "llama@int8",
        "task": "text-generation",
        "options": {"max_new_tokens": 4},
    }
    answer = process.predict([row, {**row, "base_model": "llama"}])
    assert [receipt["base_model"] for receipt in answer["receipts"]] == ["llama@int8", "llama"]


def test_requests_at_once_wait_for_one_load(process: Process, crowd: ThreadPoolExecutor) -> None:
    with process.owner_held():
        coming = [crowd.submit(process.predict, [text_row("bert@nf4")]) for _ in range(6)]
        wait_until(lambda: names(process).count("bert@nf4") == 1)
    outputs = [answer.result()["outputs"] for answer in coming]
    assert all(output == outputs[0] for output in outputs)
    assert names(process).count("bert@nf4") == 1


def test_rows_of_other_bases_are_answered_while_one_is_derived(
    process: Process, crowd: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()
    derive = served.load_derived

    def slowly(*args: Any, **options: Any) -> Base:
        base = derive(*args, **options)
        begun.set()
        assert may_end.wait(60)
        return base

    monkeypatch.setattr(served, "load_derived", slowly)
    coming = crowd.submit(process.predict, [text_row("bert@int4")])
    assert begun.wait(60)
    written = {
        "input": {"prompt": "hello"},
        "base_model": "llama",
        "task": "text-generation",
        "options": {"max_new_tokens": 4},
    }
    answer = process.predict([text_row("bert"), written])
    assert [receipt["base_model"] for receipt in answer["receipts"]] == ["bert", "llama"]
    assert not coming.done()
    may_end.set()
    assert coming.result()["outputs"] != answer["outputs"][:1]


def test_a_base_is_derived_without_the_thread_that_answers(
    process: Process, crowd: ThreadPoolExecutor
) -> None:
    with process.owner_held():
        coming = crowd.submit(process.predict, [text_row("bert@int8-weight-only")])
        wait_until(
            lambda: any(
                base.engine is not None and base.is_derived for base in process.parts.bases.all()
            )
        )
        assert not coming.done()
    assert coming.result()["outputs"]


def test_names_that_mean_nothing_are_refused(process: Process) -> None:
    for name in ("bert@int9", "bert@", "no-such@int8", "bert@int8+int8"):
        assert process.error([text_row(name)], 404)["code"] == "base_not_found"


def test_a_pruning_that_nobody_can_repeat_is_refused_for_good(process: Process) -> None:
    process.predict([text_row("bert@int8")])
    for name, code, why in (
        ("bert@wanda-0.5-0123456789abcdef", "derived_base_missing", "rows that decided"),
        ("bert@wanda-0.5", "calibration_missing", "which rows decide"),
    ):
        error = process.error([text_row(name)], 400)
        assert (error["code"], error["param"]) == (code, "rows.0.base_model")
        assert why in error["message"]
        # the answer may be here before the thread that loads has put the base out
        wait_until(lambda: names(process) == ["bert", "llama", "bert@int8"])


def test_idle_derived_bases_leave_for_others_and_configured_ones_never(
    start: Start, tiny_bases: dict[str, Base]
) -> None:
    sizes = {name: served_bytes(base) for name, base in tiny_bases.items()}
    # The configured bases, and room for the load of one more of bert's kind.
    process = start(bases_bytes=sum(sizes.values()) + int(1.2 * sizes["bert"]))
    for scheme in ("int8", "nf4", "int4"):
        assert process.predict([text_row(f"bert@{scheme}")])["outputs"]
    assert names(process) == ["bert", "llama", "bert@int4"]
    process.predict([text_row("bert@int8")])
    assert names(process) == ["bert", "llama", "bert@int8"]


def test_a_base_in_use_is_not_put_out(
    start: Start, tiny_bases: dict[str, Base], crowd: ThreadPoolExecutor
) -> None:
    sizes = {name: served_bytes(base) for name, base in tiny_bases.items()}
    process = start(bases_bytes=sum(sizes.values()) + int(1.2 * sizes["bert"]))
    process.predict([text_row("bert@int8")])
    with process.owner_held():
        coming = crowd.submit(process.predict, [text_row("bert@int8")])
        wait_until(lambda: any(b.requests for b in process.parts.bases.all()))
        refused = process.error([text_row("bert@nf4")], 503)
        assert refused["code"] == "base_memory_full"
        assert "TUNERY_BASES_BYTES" in refused["message"]
    assert coming.result()["outputs"]
    assert process.predict([text_row("bert@nf4")])["outputs"]


def test_what_rows_decided_comes_from_storage(
    process: Process, settings: Settings, tiny_bases: dict[str, Base], tmp_path: Path
) -> None:
    parent = tiny_bases["bert"].info
    calibration = Calibration([TokenRow([2, 5, 6, 7, 3]), TokenRow([2, 9, 8, 3])])
    derivation = name_rows(BaseConfig.parse("ffn-0.5+int8"), calibration)
    assert derivation.pruning is not None
    plan = make_plan(parent, derivation.pruning, calibration)
    key = derived_key(plan_name(parent, derivation.pruning))
    open_store(settings).put_bytes(key, plan.to_bytes())
    answer = process.predict([text_row(f"bert@{derivation.name}")])
    oracle = load_derived(parent, derivation, plan=plan)
    assert answer["receipts"][0]["base_fingerprint"] == oracle.fingerprint
    (listed,) = [b for b in process.client.get("/bases").json() if b["parent"] == "bert"]
    assert listed["parameters"] == oracle.parameters < tiny_bases["bert"].parameters
