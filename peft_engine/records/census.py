"""What is kept of every row while the set streams by: hashes and small numbers, never the text.

About 50 bytes a row. Collisions of the 64-bit hashes are expected once in 10**7 sets of a million
rows; one would cost a wrong count by one.
"""

import functools
import hashlib
import json
import unicodedata
from array import array
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from peft_engine.records.row_reader import ReadRow
from peft_engine.records.schema import Record, TaskSchema

Hashes = npt.NDArray[np.uint64]
Codes = npt.NDArray[np.int64]

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_KEPT_CHARACTERS = 65_536


def canonical_json(record: Record) -> str:
    """One record as its line in a split file.

    U+2028, U+2029 and U+0085 are escaped, since some readers take them for line ends.

    Args:
        record: A canonical record.

    Returns:
        Compact JSON without a line end; it decodes to an equal record.
    """
    text = _ENCODER.encode(record)
    for mark, escape in (("\u2028", "\\u2028"), ("\u2029", "\\u2029"), ("\x85", "\\u0085")):
        if mark in text:
            text = text.replace(mark, escape)
    return text


def hash64(text: str) -> int:
    """A stable 64-bit hash.

    Args:
        text: Valid Unicode.

    Returns:
        Between 0 and 2**64 - 1; the same on every machine.
    """
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def fold(text: str) -> str:
    """A text without its case, blanks and punctuation: near copies fold to the same.

    Symbols (``+``, emoji) and combining marks (vowels of many scripts) tell texts apart.

    Args:
        text: Any text.

    Returns:
        The folded text; the text itself when nothing else is left of it.
    """
    if text.isascii():
        kept = text.casefold().translate(_ASCII_PARTING)
    else:
        text = unicodedata.normalize("NFKC", text)
        kept = "".join(map(_without_parting, text.casefold()))
    return " ".join(kept.split()) or text


@functools.lru_cache(maxsize=_KEPT_CHARACTERS)
def _without_parting(character: str) -> str:
    """A blank for blanks, punctuation and control characters, else the character."""
    return " " if unicodedata.category(character)[0] in "PZC" else character


_ASCII_PARTING = {code: _without_parting(chr(code)) for code in range(128)}


class Census:
    """Columns of small numbers, one entry a row.

    Args:
        schema: The task.
    """

    def __init__(self, schema: TaskSchema) -> None:
        self.schema = schema
        self.names: list[str] = []  # files and split names, by code
        self.label_sets: list[tuple[str, ...]] = []
        self.label_counts: Counter[str] = Counter()
        self._label_set_codes: dict[tuple[str, ...], int] = {}
        self._columns: dict[str, array[Any]] = {
            "line": array("q"),
            "home": array("b"),
            "labels": array("q"),
            "row": array("Q"),
            "input": array("Q"),
            "near": array("Q"),
            "target": array("Q"),
        }

    def __len__(self) -> int:
        return len(self._columns["line"])

    def add(self, read: ReadRow, home: str, text: str) -> None:
        """Count one row.

        Args:
            read: The row.
            home: Split that it belongs to, or ``all`` when it is still to be dealt.
            text: Its canonical JSON.
        """
        if home not in self.names:
            self.names.append(home)
        question = self.schema.input_of(read.record)
        target = self.schema.target_of(read.record)
        labels = self.schema.labels_of(read.record)
        code = self._label_set_codes.setdefault(labels, len(self.label_sets))
        if code == len(self.label_sets):
            self.label_sets.append(labels)
        self.label_counts.update(labels)
        columns = self._columns
        columns["line"].append(read.line)
        columns["home"].append(self.names.index(home))
        columns["labels"].append(code)
        columns["row"].append(hash64(text))
        columns["input"].append(hash64(question))
        columns["near"].append(hash64(fold(question)))
        columns["target"].append(0 if target is None else hash64(target))

    def hashes(self, name: str) -> Hashes:
        """A column of hashes.

        Args:
            name: ``row``, ``input``, ``near`` or ``target``.

        Returns:
            (rows,) uint64.
        """
        return np.array(self._columns[name], dtype=np.uint64)

    def codes(self, name: str) -> Codes:
        """A column of numbers.

        Args:
            name: ``line``, ``home`` or ``labels``.

        Returns:
            (rows,) int64.
        """
        return np.array(self._columns[name], dtype=np.int64)

    def strata(self) -> Codes:
        """What the splits are stratified by: the label of a row, of several the rarest.

        Whole sets of labels would make a stratum of nearly every row.

        Returns:
            (rows,) int64, rank of that label in the order of names: it is the same whichever row
            came first. Rows without a label rank before all.
        """

        def rarity(label: str) -> tuple[int, str]:
            return self.label_counts[label], label

        rarest = [min(labels, key=rarity, default="") for labels in self.label_sets]
        rank = {label: at for at, label in enumerate(sorted(set(rarest)))}
        ranks = np.array([rank[label] for label in rarest], dtype=np.int64)
        return np.asarray(ranks[self.codes("labels")])

    def homes(self) -> list[str]:
        """Home of each row by name."""
        return [self.names[code] for code in self._columns["home"]]
