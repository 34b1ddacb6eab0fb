"""What `serve` asks its own servers, on a machine so busy that they answer by halves."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cli import programs

PATIENCE_SECONDS = 30.0
HEAD = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
BODY = b'{"status": "loading", "bases": {"minilm": "loading"}}'


@contextmanager
def answering(content: bytes, *, hangs: bool) -> Iterator[str]:
    """A server that sends this to one client, then closes or says nothing more."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(content)
                if hangs:
                    over.wait(PATIENCE_SECONDS)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        over.set()
        thread.join(PATIENCE_SECONDS)


@pytest.mark.parametrize("hangs", [True, False])
@pytest.mark.parametrize("said", [b"", HEAD + b"Content-Length: 99\r\n\r\n" + BODY])
def test_half_an_answer_is_none(said: bytes, hangs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "PROBE_SECONDS", 0.1)
    with answering(said, hangs=hangs) as url:
        assert programs.base_states(url) == {}
    with answering(said.replace(b"503 Service Unavailable", b"200 OK"), hangs=hangs) as url:
        assert not programs.answers(url)


def test_who_is_not_ready_says_how_far_it_is() -> None:
    whole = HEAD + f"Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY
    with answering(whole, hangs=False) as url:
        assert programs.base_states(url) == {"minilm": "loading"}
    with answering(whole, hangs=False) as url:
        assert not programs.answers(url)
