"""Ctrl-C while a command is being imported, and while it sends a file and waits for it."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


@pytest.mark.parametrize("last", ["typer", "httpx", "sqlalchemy"])
def test_ctrl_c_during_the_imports_ends_without_a_word(last: str) -> None:
    argv = [sys.executable, "-X", "importtime", "-m", "cli", "--help"]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        assert started.stderr is not None
        for line in started.stderr:
            if line.rpartition("|")[2].strip() == last:
                break
        started.send_signal(signal.SIGINT)
        said, told = started.communicate()
    assert (started.returncode, said) == (130, "")
    assert [line for line in told.splitlines() if not line.startswith("import time:")] == []


class Slow:
    """A service that is asked and takes its time, at one method of HTTP."""

    def __init__(self, held: str) -> None:
        self.is_asked, self.goes_on = threading.Event(), threading.Event()
        self.held = held
        self.url = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        request.rfile.read(int(request.headers.get("content-length", 0)))
        if request.command == self.held:
            self.is_asked.set()
            self.goes_on.wait(60)
        content = json.dumps({"id": "ds_1", "status": "validating"}).encode()
        request.send_response(202)
        request.send_header("content-length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    @contextmanager
    def served(self) -> Iterator[None]:
        slow = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                slow.answer(self)

            def do_GET(self) -> None:
                slow.answer(self)

            def log_message(self, *_: object) -> None: ...

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None: ...  # who asked has gone

        with Server(("127.0.0.1", 0), Handler) as server:
            self.url = f"http://127.0.0.1:{server.server_port}"
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield
            finally:
                self.goes_on.set()
                server.shutdown()


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ("POST", "The upload broke off. Of a part nothing is left; if all had arrived, the same"),
        ("GET", "ds_1 is validated all the same: `tunery datasets get ds_1` shows it"),
    ],
)
def test_who_breaks_an_upload_off_is_told_what_is_left(
    tmp_path: Path, held: str, told: str
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": "b"}\n', encoding="utf-8")
    slow = Slow(held)
    with slow.served():
        argv = [sys.executable, "-m", "cli", "--url", slow.url, "datasets", "upload"]
        with subprocess.Popen(
            [*argv, str(tmp_path / "rows.jsonl")], stderr=subprocess.PIPE, text=True
        ) as sending:
            assert slow.is_asked.wait(60)
            sending.send_signal(signal.SIGINT)
            said = sending.communicate()[1]
    assert sending.returncode == 130
    assert said.startswith(told)
    assert len(said.splitlines()) == 1
