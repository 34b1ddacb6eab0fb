"""The small client against servers that behave, and servers that do not."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from app.services.keepalive import KeepAliveClient, NoAnswer, Response

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nX-Some: thing\r\n\r\nok"


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """One request with its body; empty at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head + await reader.readexactly(length)


@asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[tuple[KeepAliveClient, list[str]]]:
    """A client for a server that does this with each connection, and a list of its connections."""
    opened: list[str] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append("open")
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with listening, KeepAliveClient(f"http://127.0.0.1:{port}", headers={"a": "b"}) as client:
        yield client, opened
        await client.close()


async def answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await read_request(reader):
        writer.write(OK)


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(20):
            await story()

    asyncio.run(within())


async def ask(client: KeepAliveClient, *, seconds: float = 10) -> Response:
    return await client.request("POST", "/x", body=b"{}", timeout_seconds=seconds)


def test_one_connection_serves_many_requests() -> None:
    async def story() -> None:
        async with server(answer_all) as (client, opened):
            for _ in range(5):
                response = await ask(client)
                assert (response.status, response.body) == (200, b"ok")
                assert response.headers["x-some"] == "thing"
            assert len(opened) == 1

    run(story)


def test_requests_at_once_do_not_mix() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await read_request(reader):
            body = request.split(b"\r\n\r\n", 1)[1]
            await asyncio.sleep(0)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    async def story() -> None:
        async with server(echo) as (client, opened):
            bodies = [b'{"n": %d}' % number * (number % 7 + 1) for number in range(100)]
            answers = await asyncio.gather(
                *(client.request("POST", "/", body=body, timeout_seconds=10) for body in bodies)
            )
            assert [answer.body for answer in answers] == bodies
            assert len(opened) <= 100

    run(story)


def test_the_request_as_it_is_sent() -> None:
    seen: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(OK)

    async def story() -> None:
        async with server(note) as (client, _):
            await client.request("POST", "/predict", body="ü".encode(), timeout_seconds=5)

    run(story)
    head, body = seen[0].split(b"\r\n\r\n")
    assert head.startswith(b"POST /predict HTTP/1.1\r\nhost: 127.0.0.1:")
    assert b"\r\na: b\r\n" in head
    assert head.endswith(b"content-length: 2")
    assert body == "ü".encode()


def test_a_kept_connection_that_has_ended_is_replaced() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)

    async def story() -> None:
        async with server(once) as (client, opened):
            for _ in range(3):
                assert (await ask(client)).status == 200
            assert len(opened) == 3

    run(story)


def test_an_answer_in_chunks_and_pieces() -> None:
    whole = (
        b"HTTP/1.1 429 Busy\r\ntransfer-encoding: chunked\r\nRetry-After: 3\r\n\r\n"
        b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    )

    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for place in range(len(whole)):
            writer.write(whole[place : place + 1])
            await writer.drain()

    async def story() -> None:
        async with server(slowly) as (client, _):
            response = await ask(client)
            assert (response.status, response.body) == (429, b"abcde")
            assert response.headers["retry-after"] == "3"

    run(story)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nshort",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200",
    ],
)
def test_a_server_that_breaks_off(sent: bytes) -> None:
    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(sent)

    async def story() -> None:
        async with server(broken) as (client, _):
            with pytest.raises(NoAnswer) as caught:
                await ask(client)
            assert not caught.value.is_slow

    run(story)


def test_a_server_that_is_silent() -> None:
    closed = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await reader.read()
        closed.set()

    async def story() -> None:
        async with server(silent) as (client, _):
            with pytest.raises(NoAnswer) as caught:
                await ask(client, seconds=0.2)
            assert caught.value.is_slow
            await closed.wait()

    run(story)


def test_giving_up_closes_the_connection() -> None:
    """So the server can drop the work of a client that went away."""
    began, closed = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        began.set()
        await reader.read()
        closed.set()

    async def story() -> None:
        async with server(silent) as (client, _):
            asking = asyncio.create_task(ask(client))
            await began.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await closed.wait()

    run(story)


def test_nobody_listens() -> None:
    async def story() -> None:
        async with server(answer_all) as (client, _):
            pass
        with pytest.raises(NoAnswer):
            await ask(client)

    run(story)


def test_addresses() -> None:
    for wrong in ("ftp://x", "127.0.0.1:8010", "http://", ""):
        with pytest.raises(ValueError, match="not an address"):
            KeepAliveClient(wrong, headers={})
