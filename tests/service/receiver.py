"""A receiver of webhooks on a loopback port, which behaves as the path says.

/ok 204 · /status/500 · /flaky 500 once, then 200 · /redirect 302 to /ok · /hold answers 200 when
told to · /drip never ends its headers · /noise is no HTTP
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Received:
    """One message as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


@dataclass
class Receiver:
    """What came, and the gate of ``/hold``."""

    url: str = ""
    connections: int = 0
    received: list[Received] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    def at(self, path: str) -> list[Received]:
        """Give what came to a path, in order."""
        return [each for each in self.received if each.path == path]


class _Handler(BaseHTTPRequestHandler):
    receiver: Receiver

    def setup(self) -> None:
        super().setup()
        self.receiver.connections += 1

    def do_POST(self) -> None:
        receiver = self.receiver
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        receiver.received.append(Received(self.path, headers, body))
        with suppress(OSError):  # the sender has gone away
            self._behave(receiver)

    def _behave(self, receiver: Receiver) -> None:
        if self.path == "/drip":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
            while not receiver.over.wait(0.05):
                self.wfile.write(b"x")
            return
        if self.path == "/noise":
            self.wfile.write(b"\x00\x01 no HTTP\r\n\r\n")
            return
        if self.path == "/hold":
            while not receiver.gate.wait(0.05) and not receiver.over.is_set():
                pass
        self.send_response(self._status())
        if self.path == "/redirect":
            self.send_header("location", f"{receiver.url}/ok")
        self.send_header("content-length", "0")
        self.end_headers()

    def _status(self) -> int:
        if self.path == "/flaky":
            return 500 if len(self.receiver.at("/flaky")) == 1 else 200
        if self.path.startswith("/status/"):
            return int(self.path.rpartition("/")[2])
        return {"/ok": 204, "/redirect": 302}.get(self.path, 200)

    def log_message(self, *_: object) -> None: ...


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """A sender that goes away, or speaks TLS, is no trouble of the test."""


@contextmanager
def run_receiver() -> Iterator[Receiver]:
    """Receive on a free loopback port until the end of the block."""
    receiver = Receiver()
    handler = type("Handler", (_Handler,), {"receiver": receiver})
    with _Server(("127.0.0.1", 0), handler) as server:
        receiver.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            receiver.over.set()
            server.shutdown()
            thread.join()
