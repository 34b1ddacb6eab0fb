"""What identifies a base model: its weights, its shape and its tokenizer, not its name."""

import hashlib
import json
from pathlib import Path

from peft_engine.bases.reference import BaseFiles

_BLOCK_BYTES = 1 << 20
_SHAPE_FILES = ("config.json", "tokenizer.json", "tokenizer.model", "vocab.txt")


def fingerprint_files(files: BaseFiles, *, cache: Path) -> str:
    """Digest of every file that decides what the base computes.

    Hashing gigabytes takes seconds, so digests of single files are kept in ``cache`` under their
    path, size and time of change.

    Args:
        files: The files of the base, as published (before any conversion).
        cache: JSON file for digests already computed; made when missing.

    Returns:
        ``sha256:`` and 64 hexadecimal digits.
    """
    known: dict[str, str] = _read_cache(cache)
    digest = hashlib.sha256()
    for path in _identity_files(files):
        stat = path.stat()
        key = f"{path}|{stat.st_size}|{stat.st_mtime_ns}"
        if key not in known:
            known[key] = hash_file(path)
        digest.update(f"{path.name}\0{known[key]}\n".encode())
    _write_cache(cache, known)
    return f"sha256:{digest.hexdigest()}"


def hash_file(path: Path) -> str:
    """SHA-256 of a file, read in blocks.

    Args:
        path: The file.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _identity_files(files: BaseFiles) -> list[Path]:
    if files.gguf is not None:
        return [files.gguf]
    shape = [files.directory / name for name in _SHAPE_FILES]
    return [path for path in shape if path.is_file()] + sorted(
        files.directory.glob("*.safetensors")
    )


def _read_cache(cache: Path) -> dict[str, str]:
    try:
        found = json.loads(cache.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_cache(cache: Path, known: dict[str, str]) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    temporary = cache.with_suffix(f".{id(known)}.tmp")
    temporary.write_text(json.dumps(known, indent=1, sort_keys=True))
    temporary.replace(cache)
