"""Endings of streams under ``/v1`` that a healthy inference process never gives."""

import openai
import pytest

from tests.service.app.conftest import Edge

ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@ON_SQLITE
def test_what_fails_on_the_way_is_raised_by_the_client(edge: Edge) -> None:
    edge.publish("texts", task="text-generation", labels=None)
    with openai.OpenAI(base_url=f"{edge.url}/v1", api_key=edge.key, max_retries=0) as client:
        for late, code in ((True, "adapter_changed"), (False, "inference_unavailable")):
            edge.twin.fails_late, edge.twin.breaks_off = late, not late
            stream = client.completions.create(model="texts", prompt=["one", "two"], stream=True)
            texts: list[str] = []
            with pytest.raises(openai.APIError) as told:
                texts.extend(choice.text for chunk in stream for choice in chunk.choices)
            assert told.value.code == code
            assert texts[:2] == ["on", "e"]
        edge.twin.is_busy = True
        with pytest.raises(openai.RateLimitError) as busy:
            client.completions.create(model="texts", prompt="one")
        assert busy.value.code == "queue_full"
        assert busy.value.response.headers["retry-after"] == "3"
