"""What a file is, told from its first bytes; its name is only a hint.

Knows no rows. Refuses, with a reason, what is not data at all (web pages, archives, pointers).
"""

import json
import re
from dataclasses import dataclass

FORMATS = ("jsonl", "json", "csv", "tsv", "parquet")
# Enough for a header line and the magic numbers, little enough to hold for every upload.
HEAD_BYTES = 64 * 1024

_BLANK = b" \t\r\n"
_MAGIC_ARCHIVE = (
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\x00", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a rar archive"),
)
_MAGIC_OTHER = (
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"SQLite format 3\x00", "an SQLite data base"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"ARROW1", "an Arrow file"),
    (b"\x7fELF", "a program"),
    (b"GIF8", "a GIF picture"),
)


@dataclass(frozen=True)
class Refusal:
    """A file that is no data.

    Attributes:
        code: A key of ``problems.CODES``.
        message: What it is.
        fix: What to send instead.
        line: 1 where the first line shows it.
    """

    code: str
    message: str
    fix: str
    line: int | None = None


@dataclass(frozen=True)
class Sniffed:
    """What the file is.

    Attributes:
        format: One of ``FORMATS``.
        delimiter: Of a table; "" otherwise.
        bare_cr: Line ends are CR alone.
        surprise: What to tell the user when name and content differ; "" otherwise.
    """

    format: str
    delimiter: str = ""
    bare_cr: bool = False
    surprise: str = ""


def refuse_head(head: bytes) -> Refusal | None:
    """Refuse what is no text, or no data, by its first bytes.

    Args:
        head: The first ``HEAD_BYTES`` of the unpacked file.

    Returns:
        The reason; None when it may be data.
    """
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        if b"[Content_Types].xml" in head or b"xl/workbook" in head:
            return Refusal(
                "excel_workbook",
                "this is an Excel workbook",
                "export the sheet as CSV (UTF-8) and upload that",
            )
        return Refusal("zip_archive", "this is a zip archive", "unpack it and upload the data file")
    if head.startswith(b"\xd0\xcf\x11\xe0"):
        return Refusal(
            "excel_workbook",
            "this is an old Excel workbook (.xls)",
            "export the sheet as CSV (UTF-8) and upload that",
        )
    archive = _name_of(head, _MAGIC_ARCHIVE) or (
        "a tar archive" if head[257:262] == b"ustar" else ""
    )
    if archive:
        return Refusal(
            "archive_unsupported", f"this is {archive}", "unpack it, or pack it with gzip"
        )
    other = _name_of(head, _MAGIC_OTHER)
    if other:
        return Refusal("binary_file", f"this is {other}, not text", "send JSONL, JSON or CSV")
    return _refuse_text(head)


def _name_of(head: bytes, magics: tuple[tuple[bytes, str], ...]) -> str:
    return next((name for magic, name in magics if head.startswith(magic)), "")


def _refuse_text(head: bytes) -> Refusal | None:
    start = head.lstrip(_BLANK)[:200].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return Refusal(
            "html_file",
            "this is HTML (a web page), not JSON Lines",
            "a download gave an error page? Fetch the data again and look at it",
            1,
        )
    if start.startswith(b"<?xml"):
        return Refusal("html_file", "this is XML, not JSON Lines", "convert it to JSONL or CSV", 1)
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        return Refusal(
            "lfs_pointer",
            "this is a Git LFS pointer, not the data",
            "run git lfs pull in the repository and upload the real file",
            1,
        )
    even, odd = head[0:400:2], head[1:400:2]
    zeros = sorted((even.count(0), odd.count(0)))
    if len(head) >= 8 and zeros[1] > 0.6 * len(odd) and zeros[0] * 3 < zeros[1]:
        return Refusal(
            "utf16_without_mark",
            "this looks like UTF-16 without a byte order mark",
            "save the file as UTF-8",
        )
    return None


def sniff(head: bytes, filename: str | None, format: str | None) -> Sniffed:
    """Tell the format of text data.

    Args:
        head: The first ``HEAD_BYTES`` of the unpacked file, as UTF-8 without a mark.
        filename: The user's name for it, or None.
        format: What the user said it is, or None.

    Returns:
        What it is. A stated format is believed.
    """
    named = _named_format(filename)
    if head.startswith(b"PAR1"):
        return Sniffed("parquet")
    if format == "parquet":  # it is none, or its magic number would have said so
        format, named = None, "parquet"
    found = format or _found_format(head, named)
    surprise = ""
    # Many tools call JSON Lines .json, so that this name says little.
    if format is None and named not in {None, found} and (named, found) != ("json", "jsonl"):
        surprise = f"the name says {named} and the content is {_WORDS[found]}; it was read as that"
    if found not in {"csv", "tsv"}:
        return Sniffed(found, surprise=surprise)
    wanted = "\t" if (format or named) == "tsv" else ","
    delimiter = _find_delimiter(head, wanted)
    return Sniffed(found, delimiter, b"\r" in head and b"\n" not in head, surprise)


_WORDS = {
    "jsonl": "JSON Lines",
    "json": "a JSON array",
    "csv": "CSV",
    "tsv": "TSV",
    "parquet": "Parquet",
}


def _named_format(filename: str | None) -> str | None:
    name = (filename or "").lower().removesuffix(".gz")
    ending = name.rpartition(".")[2] if "." in name else ""
    return {"ndjson": "jsonl", "tab": "tsv", "pq": "parquet"}.get(
        ending, ending if ending in FORMATS else None
    )


def _found_format(head: bytes, named: str | None) -> str:
    start = head.lstrip(_BLANK)
    if start.startswith(b"["):
        return "json"
    if start.startswith(b"{"):
        return "jsonl"
    if named in {"csv", "tsv"}:
        return named
    line = re.split(rb"[\r\n]", start, maxsplit=1)[0].decode("utf-8", "replace")
    try:
        json.loads(line[:2_000])
    except (ValueError, RecursionError):
        return "csv" if _find_delimiter(head, "") and re.match(r'["\w]', line) else "jsonl"
    return "jsonl"


def _find_delimiter(head: bytes, wanted: str) -> str:
    """The separator that the header line shows; ``wanted`` when it shows itself or nothing does."""
    line = re.split(rb"[\r\n]", head.lstrip(_BLANK), maxsplit=1)[0].decode("utf-8", "replace")
    bare = re.sub(r'"[^"]*"', "", line)
    counts = {mark: bare.count(mark) for mark in (wanted, ",", "\t", ";", "|") if mark}
    if wanted and counts[wanted]:
        return wanted
    best = max(counts, key=lambda mark: counts[mark])
    return best if counts[best] else wanted
