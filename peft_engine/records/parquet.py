"""Tells a whole Parquet file from a broken one, without reading its data.

The service reads JSONL, JSON and CSV; a Parquet file is refused with the way to convert it.
"""

import struct
from pathlib import Path

_MAGIC = b"PAR1"
# Magic at both ends and the four bytes of the footer's length.
_LEAST_BYTES = 12


def explain_parquet(path: Path, compression: str | None) -> tuple[str, str, str]:
    """Why a Parquet file is refused.

    Args:
        path: The file; it begins with the magic number.
        compression: ``gzip`` when it is packed once more, which hides its end.

    Returns:
        Code, message and fix.
    """
    convert = 'export it as JSONL or CSV, for example pandas.read_parquet("x.parquet").to_json('
    convert += '"x.jsonl", orient="records", lines=True)'
    if compression:
        return "parquet_unsupported", "this is a Parquet file packed with gzip", convert
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 8))
        tail = file.read(8)
        if size < _LEAST_BYTES or tail[4:] != _MAGIC:
            return (
                "parquet_truncated",
                "this is not a whole Parquet file: its end, with the footer, is missing",
                "write or upload the file again",
            )
        length = struct.unpack("<I", tail[:4])[0]
        if not 0 < length <= size - _LEAST_BYTES:
            return (
                "parquet_damaged",
                f"this is not a readable Parquet file: its footer says {length} bytes in a file of "
                f"{size}",
                "write or upload the file again",
            )
    return (
        "parquet_unsupported",
        "this is a Parquet file, which this service does not read",
        convert,
    )
