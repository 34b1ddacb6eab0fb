"""Names of objects, and the refusal of names that lead elsewhere."""

import re

from core.errors import BadInput

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_MAX_CHARACTERS = 255


def check_key(key: str) -> str:
    """Refuse a key that could leave its folder or means different objects on different stores.

    Args:
        key: A relative path; segments of letters, digits, ``.``, ``_`` and ``-`` that begin with
            none of ``.-``.

    Returns:
        The key itself.

    Raises:
        BadInput: The key is empty, absolute, too long, or has a segment such as ``..``.
    """
    if len(key) > _MAX_CHARACTERS or not all(map(_SEGMENT.fullmatch, key.split("/"))):
        message = f"storage key {key!r} is not a relative path of plain names"
        raise BadInput(message, code="invalid_key")
    return key


def _bare(digest: str) -> str:
    # a colon is refused by some file systems and object stores
    return digest.removeprefix("sha256:")


def upload_key(dataset_id: str, part: str) -> str:
    """Name the raw bytes of an upload that waits for its validation.

    Args:
        dataset_id: ``ds_…``; two tenants' equal bytes are two objects, each of which can be
            deleted.
        part: ``all``, or the split that the file holds.

    Returns:
        ``uploads/{dataset_id}/{part}``.
    """
    return check_key(f"uploads/{dataset_id}/{part}")


def part_key(upload_id: str, part_id: str) -> str:
    """Name a part of an upload that has not been completed.

    Args:
        upload_id: ``upload_…``.
        part_id: ``part_…``.

    Returns:
        ``uploads/{upload_id}/{part_id}``.
    """
    return check_key(f"uploads/{upload_id}/{part_id}")


def dataset_key(dataset_id: str, split: str) -> str:
    """Name the canonical records of a split.

    Args:
        dataset_id: ``ds_…``.
        split: ``train``, ``validation`` or ``test``.

    Returns:
        ``datasets/{dataset_id}/{split}.jsonl``.
    """
    return check_key(f"datasets/{dataset_id}/{split}.jsonl")


def file_key(file_id: str) -> str:
    """Name the bytes of a file of requests or answers.

    Args:
        file_id: ``file_…``.

    Returns:
        ``files/{file_id}``.
    """
    return check_key(f"files/{file_id}")


def batch_part_key(batch_id: str, attempt: int, first: int, kind: str) -> str:
    """Name some answers of a batch; the attempt keeps a fenced one from overwriting anything.

    Args:
        batch_id: ``batch_…``.
        attempt: The claim's.
        first: Place of the first request that was answered with it.
        kind: ``output`` or ``error``.

    Returns:
        ``batches/{batch_id}/{attempt}-{first}-{kind}.jsonl``.
    """
    return check_key(f"batches/{batch_id}/{attempt}-{first}-{kind}.jsonl")


def delta_key(digest: str) -> str:
    """Name a delta.

    Args:
        digest: ``sha256:…`` of the delta.

    Returns:
        ``deltas/{hex}.safetensors``.
    """
    return check_key(f"deltas/{_bare(digest)}.safetensors")


def derived_key(fingerprint: str) -> str:
    """Name what pruning takes away from a base.

    Args:
        fingerprint: ``sha256:…`` of the pruned base.

    Returns:
        ``derived/{hex}.safetensors``.
    """
    return check_key(f"derived/{_bare(fingerprint)}.safetensors")


def checkpoint_key(job_id: str, attempt: int, step: int) -> str:
    """Name a checkpoint; the attempt is in the name, so that a fenced attempt overwrites nothing.

    Args:
        job_id: ``job_…``.
        attempt: The claim's.
        step: Optimizer steps done.

    Returns:
        ``checkpoints/{job_id}/{attempt}-{step}.safetensors``.
    """
    return check_key(f"checkpoints/{job_id}/{attempt}-{step}.safetensors")
