import hashlib
import json
from pathlib import Path

import pytest

from core.errors import Unavailable
from core.settings import load_settings
from core.storage import ObjectStore, open_store
from core.storage.store import CHUNK_BYTES
from worker.splits import read_split

# Long enough for several pieces, whose borders fall into the middle of rows and characters.
RECORDS = [{"text": f"{row} " + "äß漢" * (row % 97), "label": "a"} for row in range(20_000)]
DATA = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in RECORDS)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(load_settings(data_dir=tmp_path))


@pytest.mark.parametrize("prefix", ["", "sha256:"])
def test_a_split_is_read_in_pieces(store: ObjectStore, prefix: str) -> None:
    store.put_bytes("datasets/d/train.jsonl", DATA)
    ticks: list[None] = []
    found = read_split(
        store,
        "datasets/d/train.jsonl",
        sha256=prefix + SHA256,
        tick=lambda: ticks.append(None),
    )
    assert found == RECORDS
    assert len(ticks) >= len(DATA) // CHUNK_BYTES >= 2


@pytest.mark.parametrize("data", [DATA[:-20], DATA.replace(b"19999", b"29999"), b"\xff\n", b""])
def test_damage_is_told_whether_it_can_be_parsed_or_not(store: ObjectStore, data: bytes) -> None:
    store.put_bytes("datasets/d/train.jsonl", data)
    with pytest.raises(Unavailable, match="damaged in storage"):
        read_split(store, "datasets/d/train.jsonl", sha256=SHA256, tick=lambda: None)
