"""What is said and how it is signed, read by the official client; where it may go."""

import json
import time
from datetime import UTC, datetime

import openai
import pytest
from openai import OpenAI

from core.states import WebhookEventType
from core.webhooks.addresses import AddressRefusedError, check_address, check_url
from core.webhooks.messages import make_body
from core.webhooks.signing import hint, new_secret, signed_headers

CLIENT = OpenAI(api_key="none")


def body_of(type: str = "fine_tuning.job.succeeded") -> bytes:
    moment = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
    return make_body(event_id="evt_1", type=type, object_id="job_1", happened_at=moment)


def headers_of(body: bytes, *keys: str, age_seconds: int = 0) -> dict[str, str]:
    moment = int(time.time()) - age_seconds
    return signed_headers(keys, message_id="whd_1", timestamp=moment, body=body)


def test_the_body_is_exactly_this() -> None:
    assert json.loads(body_of()) == {
        "id": "evt_1",
        "object": "event",
        "type": "fine_tuning.job.succeeded",
        "created_at": 1767323045,
        "data": {"id": "job_1"},
    }


@pytest.mark.parametrize("type", list(WebhookEventType))
def test_the_official_client_reads_every_event(type: WebhookEventType) -> None:
    secret, body = new_secret(), body_of(type)
    event = CLIENT.webhooks.unwrap(body, headers_of(body, secret), secret=secret)
    assert (event.id, event.type, event.created_at) == ("evt_1", type, 1767323045)
    assert event.data.id == "job_1"
    assert type.value.title().replace(".", "").replace("_", "") in type_name(event)


def type_name(event: object) -> str:
    return type(event).__name__


def test_either_of_two_secrets_is_enough_and_none_else() -> None:
    old, new, other = new_secret(), new_secret(), new_secret()
    body = body_of()
    headers = headers_of(body, new, old)
    for secret in (old, new):
        CLIENT.webhooks.verify_signature(body, headers, secret=secret)
    for wrong in (
        lambda: CLIENT.webhooks.verify_signature(body, headers, secret=other),
        lambda: CLIENT.webhooks.verify_signature(body + b" ", headers, secret=new),
        lambda: CLIENT.webhooks.verify_signature(
            body, headers | {"webhook-id": "whd_2"}, secret=new
        ),
        lambda: CLIENT.webhooks.verify_signature(
            body, headers_of(body, new, age_seconds=400), secret=new
        ),
    ):
        with pytest.raises(openai.InvalidWebhookSignatureError):
            wrong()


def test_a_known_signature() -> None:
    """Of the specification's own libraries."""
    headers = signed_headers(
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
        message_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        timestamp=1614265330,
        body=b'{"test": 2432232314}',
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_secrets_differ_and_are_only_hinted_at() -> None:
    secret = new_secret()
    assert secret != new_secret()
    assert hint(secret).startswith("whsec_…")
    assert len(hint(secret)) == len("whsec_…") + 4


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1"),
        *("169.254.169.254", "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1"),
        *("255.255.255.255", "::", "::1", "fe80::1", "fec0::1", "fc00::1", "ff02::1", "ff0e::1"),
        *(
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a00:1",
        ),
        *("2002:7f00:1::", "2002:a00:1::", "2001:0:1::1", "2001:db8::1"),
    ],
)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    with pytest.raises(AddressRefusedError) as told:
        check_address(address)
    assert address not in str(told.value)


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::"],
)
def test_public_addresses_are_taken(address: str) -> None:
    check_address(address)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.com/hook", "must begin with https://"),
        ("ftp://example.com/", "must begin with https://"),
        ("example.com", "must begin with https://"),
        ("https://", "is no address"),
        ("https://exam ple.com/", "is no address"),
        ("https://example.com/\x00", "is no address"),
        ("https://exämple.com/", "is no address"),
        ("https://example.com:x/", "is no address"),
        ("https://[::1/", "is no address"),
        ("https://user:pass@example.com/", "must not hold a user"),
        ("https://localhost/", "loopback"),
        ("https://LOCALHOST./", "loopback"),
        ("https://a.localhost:8443/", "loopback"),
        ("https://127.0.0.1/", "loopback"),
        ("https://[::1]/", "loopback"),
        ("https://10.0.0.1/", "public internet"),
        ("https://169.254.169.254/latest/meta-data", "public internet"),
        ("https://[::ffff:10.0.0.1]/", "public internet"),
        ("https://[fe80::1%25eth0]/", "public internet"),
    ],
)
def test_what_an_address_says_of_itself_is_told_early(url: str, reason: str) -> None:
    with pytest.raises(AddressRefusedError, match=reason):
        check_url(url, may_be_private=False)


def test_private_addresses_are_allowed_where_the_operator_says_so() -> None:
    for url in ("http://127.0.0.1:8000/hook", "https://localhost/", "http://10.0.0.1/"):
        check_url(url, may_be_private=True)
    for url in ("ftp://127.0.0.1/", "http://", "http://user@127.0.0.1/"):
        with pytest.raises(AddressRefusedError):
            check_url(url, may_be_private=True)
    for url in ("https://example.com/hook?a=b", "https://8.8.8.8:8443/", "https://[2606:4700::1]/"):
        check_url(url, may_be_private=False)
