"""Ids that sort by time and cannot be guessed.

``job_01k...``: a prefix, then 26 characters of lower-case Crockford base32 holding 128 bits: 48
bits of milliseconds, 12 bits of the fraction of that millisecond, 68 random bits. The fraction
keeps ids of one process in the order of their creation without any shared state.
"""

import secrets
import time

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford base32 in lower case: without i, l, o and u; ASCII order is value order."""

ID_LENGTH = 26
_RANDOM_BITS = 68
_TICK_BITS = 60


def is_id(prefix: str, text: str) -> bool:
    """Whether a text has the form of an id; says nothing of whether it was ever given out.

    Args:
        prefix: Kind of the resource, as for ``new_id``.
        text: Anything.

    Returns:
        True for ``prefix``, an underscore and 26 characters of the alphabet.
    """
    kind, _, value = text.rpartition("_")
    return kind == prefix and len(value) == ID_LENGTH and set(value) <= set(ALPHABET)


def is_checkpoint(reference: str) -> bool:
    """Whether a reference to what answers has the form of one to a checkpoint.

    Args:
        reference: Anything.

    Returns:
        True for its id, and for a name such as ``ft:…:ckpt-step-20``. No adapter and no alias has
        one like these.
    """
    return is_id("ckpt", reference) or reference.startswith("ft:")


def new_id(prefix: str) -> str:
    """Make a new id.

    Args:
        prefix: Kind of the resource, such as ``job`` or ``ds``; no underscore at its end.

    Returns:
        ``prefix``, an underscore and 26 characters.
    """
    # 4096 ticks in a millisecond: 0.24 microseconds each, shorter than one call
    ticks = (time.time_ns() * 4096 // 1_000_000) & ((1 << _TICK_BITS) - 1)
    value = (ticks << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS)
    shifts = range(5 * (ID_LENGTH - 1), -1, -5)
    return f"{prefix}_" + "".join(ALPHABET[(value >> shift) & 31] for shift in shifts)
