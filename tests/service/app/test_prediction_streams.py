"""``/predict`` with ``stream``: events in order, the caller's own places, and honest endings."""

import json
from typing import Any

import httpx

from tests.service.app.conftest import Edge
from tests.service.app.rows import error_of
from tests.service.app.twin_inference import FINGERPRINT, LONG

Event = tuple[str, dict[str, Any]]


def stream(client: httpx.Client, **body: Any) -> list[Event]:
    asked = {"options": {"stream": True}} | body
    with client.stream("POST", "/predict", json=asked) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        blocks = "".join(response.iter_text()).strip().split("\n\n")
    found = []
    for block in blocks:
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        found.append((fields["event"], json.loads(fields["data"])))
    return found


def test_text_comes_before_the_output_and_its_receipt(client: httpx.Client, edge: Edge) -> None:
    adapter = edge.publish("intents")
    events = stream(client, adapter_id="intents", inputs=["one", "two"])
    names = [name for name, _ in events]
    assert names == ["text", "text", "output"] * 2 + ["done"]
    for index, text in enumerate(("one", "two")):
        own = [data for name, data in events if data.get("index") == index and name == "text"]
        assert "".join(data["text"] for data in own) == text
        ending = next(d for n, d in events if n == "output" and d["index"] == index)
        assert ending["output"]["by"] == adapter.id
        assert ending["receipt"]["adapter"] == "intents@1"
        assert ending["receipt"]["base_fingerprint"] == FINGERPRINT
    assert events[-1][1] == {"usage": {"input_tokens": 2, "output_tokens": 0}}
    assert all("stream" not in row["options"] for row in edge.twin.rows)


def test_a_comparison_is_told_by_its_place(client: httpx.Client, edge: Edge) -> None:
    edge.publish("intents")
    events = stream(client, adapter_id="intents", compare=[None], inputs=["one", "two"])
    places = [(data["index"], data.get("compare")) for name, data in events if name == "output"]
    assert places == [(0, None), (1, None), (0, 0), (1, 0)]
    receipts = [data["receipt"]["adapter"] for name, data in events if name == "output"]
    assert receipts == ["intents@1", "intents@1", None, None]


def test_what_is_wrong_before_the_start_is_an_ordinary_error(
    client: httpx.Client, edge: Edge
) -> None:
    edge.publish("intents")
    body = {"adapter_id": "intents", "inputs": ["one", LONG], "options": {"stream": True}}
    response = client.post("/predict", json=body)
    assert response.status_code == 400
    assert error_of(response)["param"] == "inputs.1"
    response = client.post("/predict", json=body | {"adapter_id": "nobody"})
    assert response.status_code == 404


def test_a_failure_on_the_way_is_the_last_event(client: httpx.Client, edge: Edge) -> None:
    edge.publish("intents")
    edge.twin.fails_late = True
    events = stream(client, adapter_id="intents", inputs=["one", "two"])
    assert [name for name, _ in events] == ["text", "text", "error"]
    assert events[-1][1]["error"]["code"] == "adapter_changed"
    assert events[-1][1]["error"]["param"] == "inputs.1"


def test_a_process_that_dies_on_the_way_is_told(client: httpx.Client, edge: Edge) -> None:
    edge.publish("intents")
    edge.twin.breaks_off = True
    events = stream(client, adapter_id="intents", inputs=["one"])
    assert events[-1][0] == "error"
    assert events[-1][1]["error"]["code"] == "inference_unavailable"
