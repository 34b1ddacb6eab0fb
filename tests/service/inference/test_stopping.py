"""SIGTERM: nobody is sent here any more, and what has begun may end."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

import inference.__main__ as main_module
from tests.service.inference.conftest import Process, Start, wait_until
from tests.service.inference.test_answers import write
from tests.service.inference.test_streams import stream

TEXT = write("my card", None, max_new_tokens=40)


def begin_text(process: Process) -> Iterator[dict[str, Any]]:
    events = stream(process, [TEXT])
    assert "text" in next(events)
    return events


def hold_once_stopping(
    process: Process, monkeypatch: pytest.MonkeyPatch, until: Callable[[], object]
) -> None:
    """Let no row have another token after the stop was asked for, until something has happened."""
    writer = process.parts.bases.engines()[1].writer
    step = writer.step

    def held(*only: Any) -> Any:
        if process.server.should_exit:
            wait_until(lambda: bool(until()))
        return step(*only)

    monkeypatch.setattr(writer, "step", held)


def test_a_text_that_has_begun_is_written_to_its_end(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = process.predict([TEXT])
    # later than processes were given before; rows that wait are refused, and this one goes on
    monkeypatch.setattr(main_module, "_REFUSE_AFTER_SECONDS", 2.5)
    hold_once_stopping(process, monkeypatch, lambda: process.parts.scheduler._closed)
    events = begin_text(process)
    process.server.stop_soon()
    wait_until(lambda: process.parts.announcer._stopping.is_set())
    with pytest.raises(httpx.ConnectError), httpx.Client() as other:
        other.get(process.client.base_url.join("/healthz"))
    *_, ending, usage = events
    assert ending["output"] == expected["outputs"][0]
    assert ending["receipt"] == expected["receipts"][0]
    assert usage == {"usage": expected["usage"]}


def test_a_text_that_takes_too_long_is_given_up_with_a_clear_error(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(inference_stop_seconds=0.2)
    hold_once_stopping(process, monkeypatch, lambda: process.parts.owner._calls)
    events = begin_text(process)
    process.server.stop_soon()
    *_, last = events
    assert last["error"]["code"] == "shutting_down"
    assert process.parts.scheduler.state().rows_in_flight == 0
