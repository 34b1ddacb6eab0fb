import json
import logging
from collections.abc import Iterator

import httpx
import pytest
import uvicorn

from core.logs import configure_logging
from core.settings import load_settings


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("httpx").setLevel(logging.NOTSET)


def _fail_with(record: dict[str, str]) -> None:
    assert record
    raise ValueError("bad row")


def test_json_logs_are_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(load_settings(log_json=True))
    logging.getLogger("tunery.test").info("job %s started", "job_1")
    try:
        _fail_with({"text": "what a user wrote"})
    except ValueError:
        logging.getLogger("tunery.test").exception("failed")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line["level"], line["logger"]) for line in lines] == [
        ("job job_1 started", "info", "tunery.test"),
        ("failed", "error", "tunery.test"),
    ]
    assert lines[0]["timestamp"].endswith("Z")
    assert "ValueError: bad row" in lines[1]["exception"]


def test_lines_of_the_server_are_objects_too(capsys: pytest.CaptureFixture[str]) -> None:
    uvicorn.Config("app.main:create_app", factory=True)  # as its command line does before it
    configure_logging(load_settings(log_json=True))
    try:
        _fail_with({"text": "what a user wrote"})
    except ValueError:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application")
    (line,) = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (line["event"], line["logger"]) == ("Exception in ASGI application", "uvicorn.error")
    assert "ValueError: bad row" in line["exception"]


def test_words_for_a_terminal_are_no_field(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(load_settings(log_json=True))
    logging.getLogger("uvicorn.error").info("Started", extra={"color_message": "\x1b[1mStarted"})
    (line,) = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert line["event"] == "Started"
    assert "color_message" not in line


def test_fields_of_a_line_are_fields_of_its_object(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(load_settings(log_json=True))
    log = logging.getLogger("tunery.test")
    log.info("GET /jobs %d", 200, extra={"status": 200, "request_id": "req_1"})
    (line,) = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (line["event"], line["status"], line["request_id"]) == ("GET /jobs 200", 200, "req_1")


@pytest.mark.parametrize("log_json", [False, True])
def test_a_traceback_shows_no_value_of_a_variable(
    log_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(load_settings(log_json=log_json))
    # not a literal: a traceback quotes the lines of the source
    record = {"text": " ".join(["what", "a", "user", "wrote"])}
    try:
        _fail_with(record)
    except ValueError:
        logging.getLogger("tunery.test").exception("failed")
    text = capsys.readouterr().err
    assert "ValueError: bad row" in text
    assert record["text"] not in text


def test_configuring_twice_writes_each_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        configure_logging(load_settings())
    logging.getLogger("tunery.test").warning("once")
    assert capsys.readouterr().err.count("once") == 1


def test_calls_between_our_processes_are_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(load_settings())
    with httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200))) as client:
        client.get("http://inference/readyz")
    logging.getLogger("httpx").warning("something is wrong")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "something is wrong" in lines[0]


def test_the_first_lines_are_of_variables_that_nothing_reads(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNERY_BANK_BYTE", "1")
    configure_logging(load_settings())
    assert "TUNERY_BANK_BYTE is no setting" in capsys.readouterr().err
