"""A whole inference process in this one: real HTTP on loopback, the real engine, tiny bases."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from core.settings import Settings, load_settings
from core.storage import ObjectStore, delta_key, open_store
from inference.__main__ import Server, make_server
from inference.bank import DeltaStore
from inference.parts import Parts, make_parts
from peft_engine.bases.base import Base, load_base
from peft_engine.delta import Delta, save_delta
from tests.service.inference.tiny import make_delta
from tests.tiny_bases import write_tiny_bert, write_tiny_llama

PATIENCE_SECONDS = 30.0

Row = dict[str, Any]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    """The bases of all tests, loaded a second time here as the oracle's own copy."""
    folder = tmp_path_factory.mktemp("bases")
    paths = {
        "bert": write_tiny_bert(folder / "bert"),
        "llama": write_tiny_llama(folder / "llama"),
    }
    return {
        name: load_base(str(path), name=name, models_dir=folder / "models", device="cpu")
        for name, path in paths.items()
    }


@dataclass(frozen=True)
class Stored:
    """A delta in storage, and a row's way to name it."""

    delta: Delta
    reference: Row


class Shelf:
    """Where a test puts deltas for the process to find."""

    def __init__(self, store: ObjectStore, bases: dict[str, Base]) -> None:
        self.store = store
        self.bases = bases

    def put(self, base: str, *, seed: int, **options: Any) -> Stored:
        delta = make_delta(self.bases[base], seed=seed, **options)
        return self.put_bytes(delta, save_delta(delta), name=f"adp_{base}{seed}")

    def put_bytes(self, delta: Delta, content: bytes, *, name: str) -> Stored:
        """Store any bytes in the place of a delta."""
        key = delta_key(delta.digest)
        self.store.put_bytes(key, content)
        return Stored(delta, {"adapter_id": name, "digest": delta.digest, "key": key})


@dataclass
class Process:
    """A running inference process."""

    parts: Parts
    client: httpx.Client
    server: Server

    def predict(self, rows: Sequence[Row], **more: Any) -> dict[str, Any]:
        answer = self.post(rows, **more)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def post(self, rows: Sequence[Row], **more: Any) -> httpx.Response:
        return self.client.post("/predict", json={"rows": list(rows), **more})

    def error(self, rows: Sequence[Row], status: int, **more: Any) -> dict[str, Any]:
        answer = self.post(rows, **more)
        assert answer.status_code == status, answer.text
        return dict(answer.json()["error"])

    @contextmanager
    def owner_held(self) -> Iterator[None]:
        """Keep the owner thread busy, so that requests pile up."""
        busy, free = threading.Event(), threading.Event()

        def hold() -> None:
            busy.set()
            free.wait(PATIENCE_SECONDS)

        self.parts.owner.call(hold)
        assert busy.wait(PATIENCE_SECONDS)
        try:
            yield
        finally:
            free.set()


def wait_until(holds: Callable[[], bool], *, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for a condition that nobody announces."""
    pause = threading.Event()
    for _ in range(int(seconds * 100)):
        if holds():
            return
        pause.wait(0.01)
    raise AssertionError("the condition never came true")


Start = Callable[..., Process]


@pytest.fixture
def settings(tmp_path: Path, tiny_bases: dict[str, Base]) -> Settings:
    return load_settings(
        data_dir=tmp_path,
        base_models={name: base.reference for name, base in tiny_bases.items()},
        threads=1,
        device="cpu",
    )


@pytest.fixture
def shelf(settings: Settings, tiny_bases: dict[str, Base]) -> Shelf:
    return Shelf(open_store(settings), tiny_bases)


@pytest.fixture
def start(settings: Settings) -> Iterator[Start]:
    """Starts processes with settings of the test's own; ends them after it."""
    running: list[tuple[Process, threading.Thread]] = []

    def begin(*, ready: bool = True, store: DeltaStore | None = None, **changes: Any) -> Process:
        own = settings.model_copy(update=changes)
        parts = make_parts(own, store=store)
        server = make_server(own, parts, port=0)
        thread = threading.Thread(target=server.run)
        thread.start()
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_SECONDS)
        process = Process(parts, client, server)
        running.append((process, thread))
        if ready:
            for served in parts.bases.all():
                served.loaded.result(PATIENCE_SECONDS)
        return process

    yield begin
    for process, thread in running:
        process.client.close()
        process.server.stop_soon()
        thread.join(PATIENCE_SECONDS)


@pytest.fixture
def process(start: Start) -> Process:
    return start()


@pytest.fixture
def crowd() -> Iterator[ThreadPoolExecutor]:
    """Threads for clients that wait."""
    with ThreadPoolExecutor(16) as pool:
        yield pool
