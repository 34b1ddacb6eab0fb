"""Where webhooks may go: to the public internet, over TLS; elsewhere only where that is allowed.

A tenant chooses the address and we connect to it, from inside our own network: without this, the
service would knock at its broker, its database and its machines' metadata for whoever asks. A name
proves nothing (it may mean another address a moment later), so what counts is the address that is
connected to (``check_address``, called for the socket); what a text says is looked at to tell its
owner early.
"""

import ipaddress
from urllib.parse import urlsplit

from core.settings import is_loopback

MAX_URL_CHARS = 2000

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""Reaches the IPv4 address in its last 32 bits (RFC 6052)."""


class AddressRefusedError(OSError):
    """Nothing is sent there.

    An ``OSError``, like a connection that fails: another address of the same name may do.
    """


def check_url(url: str, *, may_be_private: bool) -> None:
    """Refuse an address that its own text shows to be of no use.

    Args:
        url: As its owner sent it.
        may_be_private: Whether loopback and private addresses are allowed, and plain HTTP.

    Raises:
        AddressRefusedError: The message says what there may be.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise AddressRefusedError(f"is no address: {error}") from error
    schemes = ("https", "http") if may_be_private else ("https",)
    if parts.scheme not in schemes:
        raise AddressRefusedError(f"must begin with {' or '.join(f'{s}://' for s in schemes)}")
    if not host or not url.isascii() or not url.isprintable() or " " in url:
        raise AddressRefusedError("is no address: give a host, and other than ASCII escaped")
    if parts.username is not None or parts.password is not None:
        raise AddressRefusedError("must not hold a user or a password: messages are signed instead")
    if not may_be_private:
        _check_host(host)


def _check_host(host: str) -> None:
    name = host.rstrip(".").lower()
    if is_loopback(name) or name.endswith(".localhost"):
        raise AddressRefusedError("must not be a loopback address")
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return  # a name: its addresses are checked when it is connected to
    check_address(name)


def check_address(address: str) -> None:
    """Refuse an address that is not on the public internet.

    Args:
        address: IPv4 or IPv6, as a resolver gives it.

    Raises:
        AddressRefusedError: It is loopback, private, link-local, multicast, reserved or the like.
            The message does not repeat it: what our names mean inside is nobody's business.
    """
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF)
        if inner is not None:
            found = inner
    is_special = found.is_multicast or found.is_reserved or found.is_unspecified
    is_local = isinstance(found, ipaddress.IPv6Address) and found.is_site_local
    if not found.is_global or is_special or is_local:
        raise AddressRefusedError("is not an address of the public internet")
