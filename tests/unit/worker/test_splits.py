import hashlib
import json
from pathlib import Path

import pytest

from core.errors import Conflict
from core.settings import load_settings
from core.storage import ObjectStore, open_store
from core.storage.store import CHUNK_BYTES
from worker.failures import explain
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
    with pytest.raises(Conflict, match="damaged in storage") as caught:
        read_split(store, "datasets/d/train.jsonl", sha256=SHA256, tick=lambda: None)
    assert caught.value.code == "dataset_damaged"
    assert not explain(caught.value).retry


def test_a_split_that_is_gone_is_told_so_too(store: ObjectStore) -> None:
    with pytest.raises(Conflict, match="upload the data set again"):
        read_split(store, "datasets/d/train.jsonl", sha256=SHA256, tick=lambda: None)


def test_what_was_damaged_on_its_way_is_read_again(store: ObjectStore) -> None:
    key = "datasets/d/train.jsonl"
    store.put_bytes(key, DATA[:-20])
    # Whole from the first piece on: the reading that has begun still sees the torn bytes.
    found = read_split(store, key, sha256=SHA256, tick=lambda: store.put_bytes(key, DATA))
    assert found == RECORDS
