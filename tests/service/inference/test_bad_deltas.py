"""Deltas that must not answer: unknown, damaged, swapped, foreign. Nobody else may feel them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from peft_engine.delta import Delta, save_delta
from tests.service.inference.conftest import (
    PATIENCE_SECONDS,
    Process,
    Row,
    Shelf,
    Start,
    Stored,
    wait_until,
)
from tests.service.inference.tiny import make_delta

HEADER_BYTES = 8


def ask(stored: Stored, *, base: str = "bert") -> Row:
    return {"input": "where is my card", "base_model": base, "delta": stored.reference}


def flip_last_byte(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def swap_label(content: bytes) -> bytes:
    """The file stays readable; only its manifest says something else."""
    assert content.count(b"refund") == 1
    return content.replace(b"refund", b"refuse")


def other_tensors(content: bytes) -> bytes:
    return content.replace(b"lora.A", b"lora.Z")


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: content[:0],
    "header only": lambda content: content[:HEADER_BYTES],
    "cut in the header": lambda content: content[:200],
    "cut in the tensors": lambda content: content[:-100],
    "longer than it says": lambda content: content + b"\0",
    "one bit of a tensor": flip_last_byte,
    "one letter of the manifest": swap_label,
    "other tensor names": other_tensors,
    "huge header": lambda content: b"\xff" * HEADER_BYTES + content[HEADER_BYTES:],
    "not a delta at all": lambda content: b"PK\x03\x04" + content[::-1],
}


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_a_damaged_delta_is_refused_and_harms_nobody(
    process: Process, shelf: Shelf, damage: str
) -> None:
    delta = make_delta(shelf.bases["bert"], seed=1)
    content = save_delta(delta)
    damaged = shelf.put_bytes(delta, DAMAGES[damage](content), name="adp_broken")
    good = shelf.put("bert", seed=2)
    before = process.predict([ask(good)])
    error = process.error([ask(good), ask(damaged), ask(good)], 500)
    assert error["code"] == "adapter_corrupt"
    assert error["param"] == "rows.1.adapter_id"
    assert "adp_broken" in error["message"]
    assert process.predict([ask(good)]) == before
    # the file is mended: the process asks storage again
    shelf.put_bytes(delta, content, name="adp_broken")
    answer = process.predict([ask(damaged)])
    assert answer["receipts"][0]["adapter_digest"] == delta.digest


def test_a_file_swapped_for_another_deltas_bytes_is_refused(process: Process, shelf: Shelf) -> None:
    wanted = make_delta(shelf.bases["bert"], seed=1)
    other = make_delta(shelf.bases["bert"], seed=2)
    swapped = shelf.put_bytes(wanted, save_delta(other), name="adp_wanted")
    error = process.error([ask(swapped)], 500)
    assert error["code"] == "adapter_corrupt"
    assert other.digest in error["message"]
    assert process.parts.bank.state().deltas == 0


def test_an_unknown_delta_is_told_with_its_row(process: Process, shelf: Shelf) -> None:
    good = shelf.put("bert", seed=1)
    missing = Stored(
        good.delta, {"adapter_id": "adp_gone", "digest": f"sha256:{'0' * 64}", "key": "deltas/none"}
    )
    error = process.error([ask(good), ask(missing)], 404)
    assert error["code"] == "object_not_found"
    assert error["param"] == "rows.1.adapter_id"
    assert "adp_gone" in error["message"]
    assert "deltas/none" not in error["message"]


def test_a_key_that_leaves_the_store_is_refused(process: Process, shelf: Shelf) -> None:
    good = shelf.put("bert", seed=1)
    outside = Stored(good.delta, {**good.reference, "key": "../tunery.db"})
    assert process.error([ask(outside)], 400)["code"] == "invalid_key"


@pytest.mark.parametrize("resident", [False, True], ids=["cold", "resident"])
def test_a_delta_of_another_base_is_refused(process: Process, shelf: Shelf, resident: bool) -> None:
    stored = shelf.put("bert", seed=1)
    if resident:
        process.predict([ask(stored)])
    error = process.error([ask(stored, base="llama")], 400)
    assert error["code"] == "base_mismatch"
    assert error["param"].startswith("rows.0")
    assert process.predict([ask(stored)])["receipts"][0]["base_model"] == "bert"


def test_weights_that_change_in_memory_are_noticed_and_dropped(
    process: Process, shelf: Shelf
) -> None:
    stored = shelf.put("bert", seed=1)
    before = process.predict([ask(stored)])
    resident = process.parts.bank._entries[stored.delta.digest].resident
    with torch.no_grad():
        next(tensor for _, tensor in resident.delta.tensor_items()).add_(1.0)
    error = process.error([ask(stored)], 503)
    assert error["code"] == "adapter_changed"
    assert process.predict([ask(stored)]) == before


def test_more_adapters_than_fit_are_refused_and_pinned_ones_stay(
    start: Start, shelf: Shelf
) -> None:
    stored = [shelf.put("bert", seed=seed) for seed in range(4)]
    file_bytes = len(save_delta(stored[0].delta))
    process = start(bank_bytes=int(2.5 * file_bytes), bank_host_bytes=1)
    error = process.error([ask(one) for one in stored], 503)
    assert error["code"] == "bank_full"
    alone = [process.predict([ask(one)]) for one in stored]
    assert process.parts.bank.state().evictions >= 2
    assert process.parts.bank.state().device_bytes <= 2.5 * file_bytes
    for one, expected in zip(stored, alone, strict=True):
        assert process.predict([ask(one)]) == expected
    assert process.parts.bank.state().pinned == 0


def test_an_adapter_whose_numbers_overflow_harms_nobody_in_its_batch(
    process: Process, shelf: Shelf, crowd: ThreadPoolExecutor
) -> None:
    def put_wild(base: str) -> Stored:
        own = make_delta(shelf.bases[base], seed=7)
        wild = Delta.of({n: torch.full_like(t, 1e29) for n, t in own.tensors.items()}, own.manifest)
        return shelf.put_bytes(wild, save_delta(wild), name=f"adp_wild_{base}")

    options = {"max_new_tokens": 6, "temperature": 1.0, "seed": 4}
    good = [
        ask(shelf.put("bert", seed=2)),
        ask(shelf.put("llama", seed=2), base="llama") | {"options": options},
        {"input": "my card", "base_model": "llama", "options": options},
    ]
    wild = [ask(put_wild("bert")), ask(put_wild("llama"), base="llama")]
    expected = [process.predict([row]) for row in good]
    with process.owner_held():
        # the wild ones first and last, so that rows stand on both sides of them
        rows = [wild[0], *good, wild[1]]
        asked = [crowd.submit(process.post, [row]) for row in rows]
        wait_until(lambda: process.parts.scheduler.state().rows_waiting == len(rows))
    first, *answers, last = [future.result(PATIENCE_SECONDS) for future in asked]
    for refused in (first, last):
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "answer_not_finite"
        assert refused.json()["error"]["param"] == "rows.0"
    assert [answer.json() for answer in answers] == expected
