"""A vLLM server behind ``/predict``: its twin writes, our own engine is the oracle."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inference import vllm_adapters
from peft_engine.bases.base import Base
from peft_engine.configs.methods import BitfitConfig
from peft_engine.delta import save_delta
from peft_engine.exchange.zero_lora import zero_lora
from peft_engine.serving import Engine, prepare_row
from peft_engine.serving import Row as EngineRow
from tests.engine.conftest import make_delta as make_any_delta
from tests.service.app.running import run_server
from tests.service.inference.conftest import Process, Row, Shelf, Start, Stored, wait_until
from tests.service.inference.twin_vllm import TwinVllm

TEXTS = ("hi", "where is my card")


@pytest.fixture
def twin(tiny_bases: dict[str, Base]) -> TwinVllm:
    return TwinVllm(tiny_bases["llama"])


@pytest.fixture
def process(start: Start, twin: TwinVllm, tmp_path: Path) -> Iterator[Process]:
    with run_server(twin.app) as url:
        yield start(vllm_url=url, vllm_base_model="llama", vllm_adapters_dir=tmp_path / "for vllm")


def ask(stored: Stored | None, text: str, **options: Any) -> Row:
    row: Row = {"input": text, "base_model": "llama", "options": {"max_new_tokens": 6} | options}
    return row if stored is None else row | {"delta": stored.reference}


def alone(base: Base, stored: Stored | None, text: str, **options: Any) -> dict[str, Any]:
    delta = stored.delta if stored else None
    row = EngineRow(None, text, delta, {"max_new_tokens": 6} | options)
    return Engine(base).predict([prepare_row(base, row)])[0].output


def test_rows_of_adapters_and_the_base_are_written_by_the_server(
    process: Process, shelf: Shelf, twin: TwinVllm, tiny_bases: dict[str, Base]
) -> None:
    stored = [*(shelf.put("llama", seed=seed) for seed in (1, 2)), None]
    asked = [(one, text) for one in stored for text in TEXTS]
    for _ in range(2):
        answer = process.predict([ask(one, text) for one, text in asked])
        for (one, text), output, receipt in zip(
            asked, answer["outputs"], answer["receipts"], strict=True
        ):
            assert output == alone(tiny_bases["llama"], one, text)
            assert receipt["engine"] == "vllm"
            assert receipt["adapter_digest"] == (one.delta.digest if one else None)
    # rows without adapter are not left to what stands beside them in the server's batch
    deltas = [one.delta if one else zero_lora(tiny_bases["llama"]) for one in stored]
    assert sorted(twin.loads) == sorted(delta.digest for delta in deltas)
    assert twin.completions == 2 * len(asked)
    wait_until(lambda: process.parts.bank.state().pinned == 0)


def test_what_it_cannot_hold_is_answered_here(
    process: Process, shelf: Shelf, twin: TwinVllm, tiny_bases: dict[str, Base]
) -> None:
    delta = make_any_delta(tiny_bases["llama"], seed=1, config=BitfitConfig(biases="all"))
    biases = shelf.put_bytes(delta, save_delta(delta), name="adp_biases")
    encoder = shelf.put("bert", seed=1)
    rows = [
        ask(biases, "hi"),
        {"input": "my card", "base_model": "bert", "delta": encoder.reference},
        ask(None, "hi"),
    ]
    answer = process.predict(rows)
    engines = [receipt["engine"] for receipt in answer["receipts"]]
    assert [engine.partition("/")[0] for engine in engines] == ["tunery", "tunery", "vllm"]
    assert answer["outputs"][0] == alone(tiny_bases["llama"], biases, "hi")
    assert twin.loads == [zero_lora(tiny_bases["llama"]).digest]


@pytest.mark.parametrize("what", ["rank", "length", "logprobs"])
def test_what_it_refuses_is_answered_here(
    process: Process, shelf: Shelf, twin: TwinVllm, tiny_bases: dict[str, Base], what: str
) -> None:
    stored = shelf.put("llama", seed=1, rank=twin.max_lora_rank + (what == "rank"))
    options: dict[str, Any] = {
        "rank": {},
        "length": {"max_new_tokens": twin.max_model_len},
        "logprobs": {"logprobs": twin.max_logprobs + 1},
    }[what]
    plain = ask(None, "hi")
    for _ in range(2):
        answer = process.predict([plain, ask(stored, "hi", **options), plain])
        engines = [receipt["engine"].partition("/")[0] for receipt in answer["receipts"]]
        assert engines == ["vllm", "tunery", "vllm"]
        assert answer["outputs"][1] == alone(tiny_bases["llama"], stored, "hi", **options)
    assert twin.refused == (1 if what == "rank" else 2)  # a rank is not asked for at every row
    wait_until(lambda: process.parts.scheduler.state().rows_in_flight == 0)
    assert process.parts.scheduler.state().rows_waiting == 0


def test_a_server_without_adapters_writes_the_base(
    process: Process, shelf: Shelf, twin: TwinVllm
) -> None:
    twin.takes_adapters = False
    answer = process.predict([ask(None, "hi"), ask(shelf.put("llama", seed=1), "hi")])
    engines = [receipt["engine"].partition("/")[0] for receipt in answer["receipts"]]
    assert engines == ["vllm", "tunery"]


def without_logprobs(output: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in output.items() if name not in {"logprobs", "choices"}}


def logprobs(output: dict[str, Any]) -> list[tuple[str, float]]:
    """Every token that is told, chosen or likely, in order."""
    told = [one for token in output.get("logprobs", ()) for one in (token, *token["top"])]
    return [(one["token"], one["logprob"]) for one in told]


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"logprobs": 2},
    "sampled": {"n": 2, "temperature": 0.9, "seed": 3, "logprobs": 2},
    "stopped": {"temperature": 0.9, "stop": ["\ufffd"], "max_new_tokens": 20},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_and_streams_reach_the_server(
    process: Process, shelf: Shelf, tiny_bases: dict[str, Base], name: str
) -> None:
    stored, options = shelf.put("llama", seed=1), OPTIONS[name]
    body = {"rows": [ask(stored, "hi", **options)]}
    with process.client.stream("POST", "/stream", json=body) as response:
        events = [json.loads(line) for line in response.iter_lines()]
    output = next(event["output"] for event in events if "output" in event)
    expected = alone(tiny_bases["llama"], stored, "hi", **options)
    choices = output.get("choices", [output])
    for one, other in zip(choices, expected.get("choices", [expected]), strict=True):
        assert without_logprobs(one) == without_logprobs(other)
        assert [token for token, _ in logprobs(one)] == [token for token, _ in logprobs(other)]
        # two continuations are computed side by side here, and one by one there
        values = [value for _, value in logprobs(other)]
        assert [value for _, value in logprobs(one)] == pytest.approx(values, abs=1e-4)
    written = [""] * len(choices)
    for event in events:
        if "text" in event:
            written[event["choice"]] += event["text"]
    assert written == [choice["text"] for choice in choices]


def test_a_server_that_was_started_again_is_told_of_the_adapter_again(
    process: Process, shelf: Shelf, twin: TwinVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_adapters, "MAX_LOADED", 1)
    stored = shelf.put("llama", seed=1)
    rows = [ask(stored, "hi"), ask(stored, "my card")]
    first = process.predict(rows)
    twin.adapters.clear()
    assert process.predict(rows)["outputs"] == first["outputs"]
    assert twin.loads == [stored.delta.digest] * 2
    # no row of before is counted for what was loaded since: it may be let go
    process.predict([ask(None, "hi")])
    assert twin.unloads == [stored.delta.digest]


def test_adapters_asked_longest_ago_are_let_go(
    process: Process, shelf: Shelf, twin: TwinVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_adapters, "MAX_LOADED", 2)
    stored = [shelf.put("llama", seed=seed) for seed in range(4)]
    for one in stored:
        process.predict([ask(one, "hi")])
    assert twin.unloads == [one.delta.digest for one in stored[:2]]
    assert len(twin.adapters) == 2


def test_a_client_that_hangs_up_stops_the_server(
    process: Process, shelf: Shelf, twin: TwinVllm
) -> None:
    twin.hangs = True
    body = {"rows": [ask(shelf.put("llama", seed=1), "hi")]}
    with process.client.stream("POST", "/stream", json=body) as response:
        next(response.iter_lines())
    wait_until(twin.hung_up.is_set)
    wait_until(lambda: process.parts.scheduler.state().rows_in_flight == 0)


def test_a_deadline_is_kept_while_the_server_says_nothing(
    process: Process, shelf: Shelf, twin: TwinVllm
) -> None:
    twin.is_silent = True
    row = ask(shelf.put("llama", seed=1), "hi")
    error = process.error([row], 504, timeout_seconds=0.5)
    assert error["code"] == "deadline_exceeded"
    wait_until(twin.hung_up.is_set)
    wait_until(lambda: process.parts.scheduler.state().rows_in_flight == 0)
    wait_until(lambda: process.parts.bank.state().pinned == 0)


def test_a_server_that_breaks_off_is_told(process: Process, twin: TwinVllm) -> None:
    twin.breaks_off = True
    assert process.error([ask(None, "hi")], 503)["code"] == "inference_unavailable"


def test_a_server_that_is_gone_is_told(start: Start, shelf: Shelf, tmp_path: Path) -> None:
    process = start(
        vllm_url="http://127.0.0.1:9",
        vllm_base_model="llama",
        vllm_adapters_dir=tmp_path / "for vllm",
    )
    for stored in (None, shelf.put("llama", seed=1)):
        error = process.error([ask(stored, "hi")], 503)
        assert error["code"] == "inference_unavailable"
    assert "outputs" in process.predict([{"input": "my card", "base_model": "bert"}])
