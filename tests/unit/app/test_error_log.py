"""An answer names no inside; the log says why something of ours did not answer."""

import asyncio
import logging

import pytest
from fastapi import FastAPI
from starlette.requests import Request

from app import error_handlers
from core.errors import BadInput, ServiceError, Unavailable
from core.storage import disk_faults_told


def answer(error: ServiceError) -> None:
    app = FastAPI()
    error_handlers.install(app)
    request = Request({"type": "http", "state": {"request_id": "req_1"}})
    asyncio.run(app.exception_handlers[ServiceError](request, error))  # type: ignore[arg-type]


def test_what_stood_behind_a_503_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Unavailable) as caught, disk_faults_told():
        raise OSError(28, "No space left on device", "/somewhere")
    answer(caught.value)
    (told,) = caplog.records
    assert told.levelno == logging.WARNING
    assert told.getMessage() == (
        "storage_full (req_1): [Errno 28] No space left on device: '/somewhere'"
    )


def test_of_a_statement_only_the_first_line_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The driver's words come first; the lines below quote the statement and its values."""
    with pytest.raises(Unavailable) as caught:
        raise Unavailable("away") from RuntimeError("(driver) is away\n[SQL: INSERT 'a row']")
    answer(caught.value)
    assert caplog.messages == ["unavailable (req_1): (driver) is away"]


def test_what_a_caller_can_mend_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(BadInput) as caught:
        raise BadInput("no") from ValueError("what they sent")
    answer(caught.value)
    answer(Unavailable("full"))  # nothing of ours failed: the answer says it all
    assert caplog.messages == []
