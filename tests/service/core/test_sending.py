"""One message to receivers of every kind."""

import asyncio
from collections.abc import Iterator

import pytest

from core.webhooks.sending import Message, Reply, WebhookSender
from core.webhooks.signing import new_secret
from tests.service.receiver import Receiver, run_receiver
from tests.service.servers.processes import free_port

SECRET = new_secret()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with run_receiver() as receiver:
        yield receiver


def send(*urls: str, may_be_private: bool = True) -> list[Reply]:
    """Send a message to each at a time."""

    async def send_all() -> list[Reply]:
        sender = WebhookSender(most=len(urls))
        messages = [Message("whd_1", url, may_be_private, (SECRET,), b"{}") for url in urls]
        try:
            return await asyncio.gather(*map(sender.send, messages))
        finally:
            sender.close()
            assert sender.under_way == 0

    return asyncio.run(send_all())


@pytest.mark.parametrize("status", [200, 204, 299])
def test_any_2xx_has_taken_it(receiver: Receiver, status: int) -> None:
    assert send(f"{receiver.url}/status/{status}") == [Reply(status, None)]
    (message,) = receiver.received
    assert message.body == b"{}"
    assert message.headers["content-type"] == "application/json"
    assert {"webhook-id", "webhook-timestamp", "webhook-signature"} <= message.headers.keys()
    assert "authorization" not in message.headers


@pytest.mark.parametrize("status", [301, 400, 410, 429, 500, 503])
def test_any_other_status_has_not(receiver: Receiver, status: int) -> None:
    assert send(f"{receiver.url}/status/{status}") == [Reply(status, f"answered {status}")]


def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    assert send(f"{receiver.url}/redirect") == [Reply(302, "answered 302")]
    assert [each.path for each in receiver.received] == ["/redirect"]


def test_what_is_no_answer_is_told_in_words_of_ours(receiver: Receiver) -> None:
    port = receiver.url.rpartition(":")[2]
    silent = free_port()
    replies = send(
        f"http://127.0.0.1:{silent}/",
        "http://no-such-name.invalid/",
        f"{receiver.url}/noise",
        f"https://127.0.0.1:{port}/ok",
        "http://127.0.0.1/\udc80",
    )
    assert [reply.error for reply in replies] == [
        "the connection was refused",
        "its name has no address",
        "its answer is not HTTP",
        "its certificate is not valid, or it speaks no TLS",
        "its address is no address: give a host, and other than ASCII escaped",
    ]
    assert all(reply.status_code is None for reply in replies)


def test_who_does_not_answer_in_time_is_left(receiver: Receiver) -> None:
    """Also one that sends a byte now and then, and never an end."""
    late, drip, ok = send(f"{receiver.url}/hold", f"{receiver.url}/drip", f"{receiver.url}/ok")
    assert late == drip == Reply(None, "no answer within 10 s")
    assert ok == Reply(204, None)


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("127.0.0.1", "must not be a loopback address"),
        ("localhost", "must not be a loopback address"),
        ("[::1]", "must not be a loopback address"),
        ("[::ffff:127.0.0.1]", "is not an address of the public internet"),
        # a name by its text and loopback for the resolver: only the socket's address tells
        ("0x7f000001", "is not an address of the public internet"),
        ("2130706433", "cannot be read"),
        ("127.1", "cannot be read"),
    ],
)
def test_a_private_address_is_not_connected_to_whatever_it_is_called(
    receiver: Receiver, host: str, reason: str
) -> None:
    port = receiver.url.rpartition(":")[2]
    (reply,) = send(f"https://{host}:{port}/ok", may_be_private=False)
    assert reply == Reply(None, f"its address {reason}")
    assert receiver.connections == 0
    send(f"https://127.0.0.1:{port}/ok")
    assert receiver.connections == 1  # it would have been seen


def test_plain_http_is_not_spoken_where_private_addresses_are_not_allowed(
    receiver: Receiver,
) -> None:
    (reply,) = send(f"{receiver.url}/ok", may_be_private=False)
    assert reply == Reply(None, "its address must begin with https://")
    assert receiver.connections == 0
