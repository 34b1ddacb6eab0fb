"""A vLLM server behind ``/predict``: its twin writes, our own engine is the oracle."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inference import forwarding
from peft_engine.bases.base import Base
from peft_engine.configs.methods import BitfitConfig
from peft_engine.delta import save_delta
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
    assert sorted(twin.loads) == sorted(one.delta.digest for one in stored if one)
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
    assert twin.loads == []


def test_options_and_streams_reach_the_server(
    process: Process, shelf: Shelf, tiny_bases: dict[str, Base]
) -> None:
    stored = shelf.put("llama", seed=1)
    options = {"n": 2, "temperature": 0.9, "seed": 3, "logprobs": 2}
    body = {"rows": [ask(stored, "hi", **options)]}
    with process.client.stream("POST", "/stream", json=body) as response:
        events = [json.loads(line) for line in response.iter_lines()]
    output = next(event["output"] for event in events if "output" in event)
    expected = alone(tiny_bases["llama"], stored, "hi", **options)
    for one, other in zip(output["choices"], expected["choices"], strict=True):
        assert one | {"logprobs": None} == other | {"logprobs": None}
        told = [(token["token"], token["logprob"]) for token in one["logprobs"]]
        # likeliest tokens come by their text there, so two of the same text are one
        assert told == [(t["token"], pytest.approx(t["logprob"])) for t in other["logprobs"]]
    written = ["", ""]
    for event in events:
        if "text" in event:
            written[event["choice"]] += event["text"]
    assert written == [choice["text"] for choice in output["choices"]]


def test_a_server_that_was_started_again_is_told_of_the_adapter_again(
    process: Process, shelf: Shelf, twin: TwinVllm
) -> None:
    stored = shelf.put("llama", seed=1)
    first = process.predict([ask(stored, "hi")])
    twin.adapters.clear()
    assert process.predict([ask(stored, "hi")])["outputs"] == first["outputs"]
    assert len(twin.loads) == 2


def test_adapters_asked_longest_ago_are_let_go(
    process: Process, shelf: Shelf, twin: TwinVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "MAX_LOADED", 2)
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
