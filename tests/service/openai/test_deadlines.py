"""A text that does not end in time, asked by the official client with its own idea of retries."""

from pathlib import Path

import openai
import pytest

from peft_engine.bases.base import Base
from tests.service.app.running import run_server
from tests.service.inference.twin_vllm import TwinVllm
from tests.service.openai.conftest import open_house


def test_what_takes_too_long_is_asked_once(tmp_path: Path, tiny_bases: dict[str, Base]) -> None:
    twin = TwinVllm(tiny_bases["llama"])
    twin.is_silent = True
    with run_server(twin.app) as url:
        changes = {"vllm_url": url, "vllm_base_model": "llama", "vllm_adapters_dir": tmp_path / "v"}
        folder = tmp_path / "data"
        with open_house(folder, tiny_bases, predict_timeout_seconds=0.5, **changes) as house:
            assert house.client.max_retries == 2
            with pytest.raises(openai.InternalServerError) as told:
                house.client.chat.completions.create(
                    model="menu",
                    messages=[{"role": "user", "content": "my card"}],
                    max_tokens=8,  # more than its context holds it would refuse
                )
    assert (told.value.status_code, told.value.code) == (504, "deadline_exceeded")
    assert "stream the answer" in told.value.message
    assert told.value.response.headers["x-should-retry"] == "false"
    assert told.value.response.request.headers["x-stainless-retry-count"] == "0"
