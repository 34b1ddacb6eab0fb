"""Proof of which weights answered: read from the tensors on the device, not from a name.

A delta becomes resident only when the digest computed from its tensors, where they lie on the
device, is the one that was asked for. From then on torch counts every write into a tensor: a
receipt is given only while the count is what it was, so that a digest never has to be computed
again for a row.
"""

from collections.abc import Callable
from importlib import metadata

from core.errors import BadInput, Internal, Unavailable
from inference.bank import DeltaRef, Resident
from inference.schemas import Receipt
from peft_engine.bases.base import Base
from peft_engine.delta import Delta, check_delta, load_delta
from peft_engine.errors import DeltaError


def make_resident(blob: memoryview, ref: DeltaRef, base: Base) -> Resident:
    """Put a delta on the device of its base and prove that it is the one asked for.

    Args:
        blob: The stored file; on a CPU the tensors may lie in it.
        ref: What it must be.
        base: The base that it shall act on.

    Returns:
        The delta on the device.

    Raises:
        Internal: The file is damaged, or holds another delta than the one asked for (code
            ``adapter_corrupt``).
        BadInput: The delta belongs to another base (code ``base_mismatch``).
    """
    try:
        delta = _load_verified(blob, ref, base)
    except DeltaError as error:
        if error.code == "base_mismatch":
            raise BadInput(error.message, code=error.code, param=error.param) from error
        raise Internal(
            f"the stored delta of adapter {ref.adapter_id} cannot be used: {error.message}",
            code="adapter_corrupt",
        ) from error
    return Resident(
        digest=delta.digest,
        bytes=delta.bytes,
        delta=delta,
        is_unchanged=_watch(delta),
    )


def _load_verified(blob: memoryview, ref: DeltaRef, base: Base) -> Delta:
    """Load a delta whose digest, taken from the tensors on the device, is the one asked for.

    Raises:
        DeltaError: It is another one, or does not fit the base.
    """
    delta = load_delta(blob, device=base.device)
    if delta.digest != ref.digest:
        raise DeltaError(f"it holds {delta.digest}, not {ref.digest}", code="delta_corrupt")
    check_delta(
        delta, base.trunk, fingerprint=base.fingerprint, template_digest=base.template_digest
    )
    return delta


def write_receipt(
    base: Base,
    *,
    resident: Resident | None = None,
    adapter_id: str | None = None,
    engine: str | None = None,
) -> Receipt:
    """State what answered a row; called on the owner thread right after the forward.

    Args:
        base: The base that computed.
        resident: The delta that acted on the row; None for the plain base.
        adapter_id: In whose name it was asked for.
        engine: Which other program computed; None: this one.

    Returns:
        The receipt.

    Raises:
        Unavailable: The delta's tensors were written to since they were verified (code
            ``adapter_changed``); the answer must not be given.
    """
    if resident is not None and not resident.is_unchanged():
        raise Unavailable(
            f"the weights of adapter {adapter_id} in memory are no longer the stored ones and were "
            "dropped; ask again",
            code="adapter_changed",
            retry_after_seconds=1,
        )
    return Receipt(
        adapter_id=adapter_id,
        adapter_digest=resident.digest if resident else None,
        base_model=base.name,
        base_fingerprint=base.fingerprint,
        template_digest=base.template_digest,
        engine=engine or engine_name(base),
    )


def engine_name(base: Base) -> str:
    """Which program computed, in which arithmetic and where.

    Args:
        base: The base that computed.

    Returns:
        Such as ``tunery/0.1.0 fp32 cpu``.
    """
    return f"tunery/{metadata.version('tunery')} {base.precision} {base.device}"


def _watch(delta: Delta) -> Callable[[], bool]:
    """Tell later whether anybody wrote into the tensors (a few microseconds, no bytes read)."""
    tensors = [tensor for _, tensor in delta.tensor_items()]
    before = [(tensor.data_ptr(), tensor._version) for tensor in tensors]

    def is_unchanged() -> bool:
        return before == [(tensor.data_ptr(), tensor._version) for tensor in tensors]

    return is_unchanged
