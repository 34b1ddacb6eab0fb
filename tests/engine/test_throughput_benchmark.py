"""The comparison of throughput: which sides are run, and what a technique's plain form computes."""

from collections.abc import Iterator
from unittest import mock

import pytest

from benchmarks.training.ablations import ABLATIONS
from benchmarks.training.compare import sides_of
from peft_engine.bases.base import Base
from peft_engine.training import TrainingEvent
from tests.engine.test_training import job, run


@pytest.fixture
def patched() -> Iterator[None]:
    """What an ablation replaces is put back."""
    yield
    mock.patch.stopall()


def test_an_encoder_is_not_asked_for_what_only_texts_have() -> None:
    every = sides_of("text", peers=["random"], without=list(ABLATIONS))
    assert every == ["ours", "peer random", *(f"ours without {name}" for name in ABLATIONS)]
    own = sides_of("encoder", peers=["random"], without=list(ABLATIONS))
    assert own == ["ours", "peer random", "ours without length-buckets"]


UNEVEN = {
    "train": [
        {"prompt": "my card " * (1 + i % 4), "completion": "abcd"[i % 4] * 3} for i in range(24)
    ],
    "validation": [],
    "test": [],
}


def losses(base: Base, **settings: object) -> list[float]:
    """Training losses of the steps of a packed job."""
    events: list[TrainingEvent] = []
    method = {"type": "lora", "r": 4}
    asked = {"method": method, "packing": True, "max_length": 60, "epochs": 1} | settings
    run(base, job("text-generation", **asked), UNEVEN, events=events)
    return [event.data["loss"] for event in events if event.kind == "progress"]


@pytest.mark.parametrize("name", ABLATIONS)
@pytest.mark.usefixtures("patched")
def test_the_plain_form_of_a_technique_learns_the_same(name: str, llama: Base) -> None:
    wanted = losses(llama)
    found = losses(llama, **ABLATIONS[name]())
    if "buckets" in name:  # other rows make a step
        assert found != pytest.approx(wanted, rel=1e-2)
        assert len(found) == len(wanted)
    else:
        assert found == pytest.approx(wanted, rel=1e-4)
