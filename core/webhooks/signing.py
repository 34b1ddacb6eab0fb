"""Signatures of Standard Webhooks: who holds the secret knows that we sent it, and when.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence

SECRET_PREFIX = "whsec_"  # noqa: S105  how every secret begins
_SECRET_BYTES = 32
"""The specification asks for 24 to 64."""
_HINT_CHARS = 4


def new_secret() -> str:
    """Make a secret.

    Returns:
        ``whsec_`` and 32 random bytes in base64.
    """
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def hint(secret: str) -> str:
    """Show enough of a secret to tell it from another.

    Args:
        secret: From ``new_secret``.

    Returns:
        Its prefix, and its last characters before the padding.
    """
    return f"{SECRET_PREFIX}…{secret.rstrip('=')[-_HINT_CHARS:]}"


def signed_headers(
    keys: Sequence[str], *, message_id: str, timestamp: int, body: bytes
) -> dict[str, str]:
    """Sign a message.

    Args:
        keys: Secrets from ``new_secret``; its receiver needs to know one of them.
        message_id: The same whenever this message is sent.
        timestamp: Unix seconds of this attempt; receivers refuse what is older than five minutes.
        body: The bytes that are sent.

    Returns:
        The headers ``webhook-id``, ``webhook-timestamp`` and ``webhook-signature``.
    """
    signed = f"{message_id}.{timestamp}.".encode() + body
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(_sign(key, signed) for key in keys),
    }


def _sign(key: str, signed: bytes) -> str:
    secret = base64.b64decode(key.removeprefix(SECRET_PREFIX))
    return "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()
