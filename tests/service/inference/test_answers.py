"""What is answered: the right weights for every row, however the rows are mixed."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from inference.schemas import PredictOut
from tests.service.inference.conftest import PATIENCE_SECONDS, Process, Row, Shelf, wait_until

TEXTS = [
    "where is my card",
    "please tell me about a refund",
    "money lost",
    "my new order is late please tell me where my order is",
    "stolen card",
]


def about_equal(found: Any, expected: Any) -> bool:
    """Equal, numbers to 1e-5."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(
            about_equal(found[key], value) for key, value in expected.items()
        )
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(about_equal, found, expected))
    if isinstance(expected, float):
        return bool(found == pytest.approx(expected, abs=1e-5))
    return bool(found == expected)


def classify(text: str, reference: Row | None, **options: Any) -> Row:
    return {"input": text, "base_model": "bert", "delta": reference, "options": options}


def write(text: str, reference: Row | None, **options: Any) -> Row:
    return {
        "input": text,
        "base_model": "llama",
        "delta": reference,
        "options": {"max_new_tokens": 6, **options},
    }


@pytest.fixture
def mixed_rows(shelf: Shelf) -> list[Row]:
    """Three adapters and the plain base on each of two bases, all interleaved."""
    writers = [shelf.put("llama", seed=seed, rank=rank).reference for seed, rank in
               ((1, 2), (2, 4), (3, 8))]  # fmt: skip
    readers = [
        shelf.put("bert", seed=4).reference,
        shelf.put("bert", seed=5, rank=2, labels=("a", "b", "c", "d", "e", "f", "g")).reference,
        None,
    ]
    rows: list[Row] = []
    for text in TEXTS:
        rows += [write(text, reference) for reference in [*writers, None]]
        rows += [classify(text, reference) for reference in readers]
        rows.append(classify(text, None, labels=["card", "refund"]))
    return rows


def test_a_mixed_batch_equals_its_rows_one_by_one(process: Process, mixed_rows: list[Row]) -> None:
    together = process.predict(mixed_rows)
    # one batch for the 20 rows that are read, adapters and plain base together
    assert process.parts.scheduler.state().batches == 1
    assert len(together["outputs"]) == len(together["receipts"]) == len(mixed_rows) == 40
    for index, row in enumerate(mixed_rows):
        alone = process.predict([row])
        assert about_equal(together["outputs"][index], alone["outputs"][0])
        assert together["receipts"][index] == alone["receipts"][0]


def test_adapters_and_base_really_differ(process: Process, mixed_rows: list[Row]) -> None:
    outputs = process.predict(mixed_rows)["outputs"]
    # eight rows for each text: three adapters and the base that write, two adapters that read,
    # the feature of the plain encoder, and the plain encoder's choice among two labels
    texts = {tuple(row["text"] for row in outputs[index::8]) for index in range(4)}
    assert len(texts) == 4
    assert set(outputs[4]["scores"]) == {"card", "order", "refund"}
    assert set(outputs[5]["scores"]) == set("abcdefg")
    assert len(outputs[6]["embedding"]) == 32
    assert set(outputs[7]["scores"]) == {"card", "refund"}


def test_requests_of_many_clients_share_forwards(
    process: Process, mixed_rows: list[Row], crowd: ThreadPoolExecutor
) -> None:
    alone = [process.predict([row]) for row in mixed_rows[:16]]
    before = process.parts.scheduler.state().batches
    with process.owner_held():
        asked = [crowd.submit(process.predict, [row]) for row in mixed_rows[:16]]
        wait_until(lambda: process.parts.scheduler.state().rows_waiting == 16)
    for future, expected in zip(asked, alone, strict=True):
        found = future.result(PATIENCE_SECONDS)
        assert about_equal(found["outputs"][0], expected["outputs"][0])
        assert found["receipts"] == expected["receipts"]
    assert process.parts.scheduler.state().batches == before + 1  # of the rows that are read


def test_two_threads_never_get_each_others_answers(process: Process, shelf: Shelf) -> None:
    rows = [classify("where is my card", shelf.put("bert", seed=seed).reference) for seed in (1, 2)]
    expected = [process.predict([row]) for row in rows]

    def ask(which: int) -> bool:
        found = process.predict([rows[which]])
        return (
            about_equal(found["outputs"][0], expected[which]["outputs"][0])
            and found["receipts"] == expected[which]["receipts"]
        )

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(ask, [0, 1] * 25))


def test_a_receipt_states_what_answered(process: Process, shelf: Shelf) -> None:
    stored = shelf.put("llama", seed=1)
    base = shelf.bases["llama"]
    answer = PredictOut.model_validate(
        process.predict([write("my card", stored.reference), write("my card", None)])
    )
    tuned, plain = answer.receipts
    assert tuned.adapter_id == stored.reference["adapter_id"]
    assert tuned.adapter_digest == stored.delta.digest
    assert (plain.adapter_id, plain.adapter_digest) == (None, None)
    for receipt in answer.receipts:
        assert receipt.base_model == "llama"
        assert receipt.base_fingerprint == base.fingerprint
        assert receipt.template_digest == base.template_digest
        assert receipt.engine.endswith(" fp32 cpu")


def test_usage_counts_tokens_of_all_rows(process: Process, shelf: Shelf) -> None:
    reference = shelf.put("bert", seed=1).reference
    usage = process.predict([classify("my card", reference), classify("my card", reference)])[
        "usage"
    ]
    assert usage == {"input_tokens": 8, "output_tokens": 0}  # [CLS] my card [SEP], twice
    usage = process.predict([write("my card", None, max_new_tokens=3)])["usage"]
    assert usage["input_tokens"] == len("my card") + 4  # <|user|> … <|end|> newline <|assistant|>
    assert 1 <= usage["output_tokens"] <= 3


def test_a_delta_written_a_moment_ago_is_answered_without_a_restart(
    process: Process, shelf: Shelf
) -> None:
    first = shelf.put("bert", seed=1)
    process.predict([classify("my card", first.reference)])
    second = shelf.put("bert", seed=2)
    answer = process.predict([classify("my card", second.reference)])
    assert answer["receipts"][0]["adapter_digest"] == second.delta.digest
