"""Several inference replicas behind one api: the warm one answers, or any other when it is gone."""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
import pytest

from app.services.inference import Unreachable
from app.services.replicas import REST_SECONDS, Replica, Replicas
from core.db import nodes
from core.errors import BadInput, TooMany, Unavailable
from tests.service.app.conftest import Edge
from tests.service.app.running import run_server
from tests.service.app.twin_inference import LONG, TwinInference

T = TypeVar("T")
GONE = "http://127.0.0.1:1"
BASES = frozenset({"minilm"})
ADAPTERS = range(64)  # where ports decide who is asked, one of four gets none once in 25 million


@dataclass
class Fleet:
    """Three twins, and what the api believes of them."""

    twins: dict[str, TwinInference]
    seconds: float = 0.0
    announced: list[Replica] = field(default_factory=list)
    database_is_away: bool = False

    def find(self) -> Sequence[Replica]:
        if self.database_is_away:
            raise Unavailable("the database does not answer")
        return list(self.announced)

    def replicas(self, default: str = GONE) -> Replicas:
        return Replicas(default, self.find, token="between-us", clock=lambda: self.seconds)

    def asked(self) -> Counter[str]:
        return Counter({url: len(twin.rows) for url, twin in self.twins.items()})


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with ExitStack() as stack:
        twins = {}
        for _ in range(3):
            twin = TwinInference()
            twins[stack.enter_context(run_server(twin.app))] = twin
        yield Fleet(twins, announced=[Replica(url, BASES) for url in twins])


def run(replicas: Replicas, asking: Coroutine[Any, Any, T]) -> T:
    async def ask() -> T:
        try:
            return await asking
        finally:
            await replicas.close()

    return asyncio.run(ask())


def row(adapter: int) -> dict[str, Any]:
    delta = {"adapter_id": f"adp_{adapter}", "digest": f"sha256:{adapter:064x}", "key": "k"}
    return {"input": "text", "base_model": "minilm", "delta": delta, "options": {}}


async def ask_all(replicas: Replicas, adapters: Iterable[int]) -> None:
    for adapter in adapters:
        await replicas.predict([row(adapter)], tenant_id="t")


def test_an_adapter_always_goes_to_the_same_replica(fleet: Fleet) -> None:
    replicas = fleet.replicas()
    run(replicas, ask_all(replicas, [*ADAPTERS] * 3))
    homes: dict[str, set[str]] = {}
    for url, twin in fleet.twins.items():
        for asked in twin.rows:
            homes.setdefault(asked["delta"]["digest"], set()).add(url)
    assert {len(urls) for urls in homes.values()} == {1}
    assert all(fleet.asked().values())  # and all replicas have work


def test_only_the_adapters_of_a_lost_replica_move(fleet: Fleet) -> None:
    before = fleet.replicas()
    run(before, ask_all(before, ADAPTERS))
    homes = {r["delta"]["digest"]: url for url, twin in fleet.twins.items() for r in twin.rows}
    lost = fleet.announced.pop().url
    for twin in fleet.twins.values():
        twin.rows.clear()
    after = fleet.replicas()
    run(after, ask_all(after, ADAPTERS))
    for url, twin in fleet.twins.items():
        for asked in twin.rows:
            assert homes[asked["delta"]["digest"]] in (url, lost)
    assert not fleet.twins[lost].rows


def test_a_replica_that_is_gone_is_passed_over_and_rests(fleet: Fleet) -> None:
    fleet.announced.append(Replica(GONE, BASES))
    replicas = fleet.replicas()

    async def ask() -> None:
        await ask_all(replicas, ADAPTERS)
        assert replicas._resting == {GONE: REST_SECONDS}
        fleet.seconds = REST_SECONDS + 1
        assert (await replicas._urls(BASES, "k"))[:4].count(GONE) == 1

    run(replicas, ask())
    assert fleet.asked().total() == len(ADAPTERS)


class Tired(Replicas):
    """Opens no connection at the first try, as on a machine that is too busy."""

    def __init__(self, *given: Any, was_connected: bool, **named: Any) -> None:
        super().__init__(*given, **named)
        self.was_connected = was_connected
        self.tries: list[str] = []

    def _client(self, url: str) -> Any:
        self.tries.append(url)
        if self.tries.count(url) == 1:
            error = Unreachable("no connection", code="inference_unavailable")
            error.was_connected = self.was_connected
            raise error
        return super()._client(url)


def test_a_replica_that_no_connection_was_opened_to_is_asked_once_more(fleet: Fleet) -> None:
    tired = Tired(next(iter(fleet.twins)), fleet.find, token="between-us", was_connected=False)
    run(tired, ask_all(tired, [0]))
    assert fleet.asked().total() == 1
    assert len(tired.tries) == 4  # all three, then the first again
    broken = Tired(next(iter(fleet.twins)), fleet.find, token="between-us", was_connected=True)
    with pytest.raises(Unreachable):
        run(broken, ask_all(broken, [0]))
    assert len(broken.tries) == 3


def test_a_full_replica_is_passed_over_and_all_full_is_told(fleet: Fleet) -> None:
    first, *others = fleet.twins.values()
    first.is_busy = True
    replicas = fleet.replicas()
    run(replicas, ask_all(replicas, ADAPTERS))
    for twin in others:
        twin.is_busy = True
    full = fleet.replicas()
    with pytest.raises(TooMany) as refused:
        run(full, full.predict([row(0)], tenant_id="t"))
    assert refused.value.retry_after_seconds == 3


def test_a_row_that_is_wrong_is_not_asked_elsewhere(fleet: Fleet) -> None:
    replicas = fleet.replicas()
    with pytest.raises(BadInput):
        run(replicas, replicas.predict([row(0) | {"input": LONG}], tenant_id="t"))
    assert fleet.asked().total() == 1


def test_a_base_is_asked_of_those_that_have_it(fleet: Fleet) -> None:
    has, *_ = fleet.announced
    fleet.announced = [has, *[Replica(r.url, frozenset({"other"})) for r in fleet.announced[1:]]]
    replicas = fleet.replicas()
    run(replicas, ask_all(replicas, ADAPTERS))
    assert fleet.asked() == {url: len(ADAPTERS) if url == has.url else 0 for url in fleet.twins}


def test_the_default_is_asked_when_nobody_announced_itself(fleet: Fleet) -> None:
    default, fleet.announced = fleet.announced[0].url, []
    replicas = fleet.replicas(default)
    run(replicas, ask_all(replicas, range(2)))
    assert fleet.asked()[default] == 2


def test_a_database_that_is_away_changes_nothing(fleet: Fleet) -> None:
    replicas = fleet.replicas()

    async def ask() -> None:
        await ask_all(replicas, ADAPTERS)
        fleet.database_is_away = True
        fleet.seconds = 60
        await ask_all(replicas, ADAPTERS)

    run(replicas, ask())
    assert fleet.asked().total() == 2 * len(ADAPTERS)


def test_without_any_replica_the_error_says_so() -> None:
    replicas = Replicas(GONE, list)
    with pytest.raises(Unreachable, match="cannot be reached"):
        run(replicas, replicas.predict([row(0)], tenant_id="t"))
    again = Replicas(GONE, list)
    with pytest.raises(Unreachable):
        run(again, again.ready())


def test_many_open_streams_keep_nobody_out(fleet: Fleet) -> None:
    """The official client opens as many as its user likes, and some are never read to the end."""
    url, twin = next(iter(fleet.twins.items()))
    twin.goes_on = True
    fleet.announced = [Replica(url, BASES)]
    replicas = fleet.replicas(default=url)

    async def ask() -> None:
        streams = []
        async with asyncio.timeout(30):
            for number in range(250):
                streams.append(await replicas.stream([row(number)], tenant_id="t"))
                assert "text" in await anext(streams[-1])
            await replicas.ready()
            assert await replicas.requests_of("adp_1") == 0
            await replicas.predict([row(1)], tenant_id="another")
        for events in streams:
            await events.aclose()

    run(replicas, ask())


def test_the_service_finds_announced_replicas(client: httpx.Client, edge: Edge) -> None:
    """Over HTTP: the default is gone, the announced one answers, also in a stream."""
    edge.publish("intents")
    twin = TwinInference()
    with run_server(twin.app) as url:
        with edge.database.write() as session:
            nodes.announce(
                session,
                id="node_1",
                url=url,
                bases=[{"name": "minilm", "ready": True}],
                device="cpu",
                precision={},
                status="ready",
            )
        edge.twin.is_busy = True
        asked = {"adapter_id": "intents", "inputs": ["one"]}
        assert client.post("/predict", json=asked).status_code == 200
        streamed = client.post("/predict", json=asked | {"options": {"stream": True}})
        assert "event: done" in streamed.text
        assert len(twin.rows) == 2
        models = client.get("/models").json()
        assert models["inference"] == "up"
