"""Batches of similar length: nearly free of padding, other ones each epoch, no row lost."""

import pytest
import torch

from peft_engine.bases.base import Base
from peft_engine.parts.batching import Batch, Example, TokenRow, epoch_batches
from peft_engine.router import Router
from peft_engine.training import FeatureStore
from peft_engine.training.batches import StepBatches
from peft_engine.training.parallel import Solo
from peft_engine.training.prepare import prepare
from tests.engine.test_training import Splits, job
from tests.tiny_bases import WORDS

ROWS, BATCH = 1000, 8
# Most rows are short and a few long, and no two are alike: only a shuffle mixes them.
LENGTHS = [8 + i + i**3 // 100_000 for i in range(ROWS)]
EXAMPLES = [Example((TokenRow(range(length)),)) for length in LENGTHS]


def padding_share(batches: list[list[int]]) -> float:
    """Positions without a token, of all positions that the base would be given."""
    longest = [max(LENGTHS[row] for row in rows) * len(rows) for rows in batches]
    return 1 - sum(LENGTHS) / sum(longest)


def bucketed(epoch: int, *, seed: int = 0) -> list[list[int]]:
    return epoch_batches(EXAMPLES, batch_size=BATCH, seed=seed, epoch=epoch)


@pytest.mark.parametrize("epoch", [0, 1])
def test_batches_of_similar_length_have_little_padding(epoch: int) -> None:
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(epoch)).tolist()
    at_random = padding_share([order[i : i + BATCH] for i in range(0, ROWS, BATCH)])
    assert at_random > 0.5
    assert padding_share(bucketed(epoch)) < at_random / 4


def test_each_epoch_has_every_row_once_in_batches_of_its_own() -> None:
    epochs = [bucketed(epoch) for epoch in range(3)]
    for batches in epochs:
        assert sorted(row for rows in batches for row in rows) == list(range(ROWS))
        assert {len(rows) for rows in batches} == {BATCH}
    kinds = [{frozenset(rows) for rows in batches} for batches in epochs]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert len(kinds[one] & kinds[other]) < 0.1 * len(kinds[one])
    assert bucketed(1) == epochs[1]
    assert bucketed(1, seed=1) != epochs[1]


def test_short_and_long_batches_come_in_no_order() -> None:
    """A run that met its long rows last would end on them."""
    means = torch.tensor(
        [sum(LENGTHS[row] for row in rows) / len(rows) for rows in bucketed(0)]
    )  # (batches,)
    rising = (means.diff() > 0).float().mean()
    assert 0.4 < float(rising) < 0.6


@pytest.mark.parametrize("accumulated", [1, 3])
def test_the_steps_of_a_job_meet_every_row_once_an_epoch(accumulated: int, bert: Base) -> None:
    rows: Splits = {
        "train": [
            {"text": f"{' '.join(WORDS[: 1 + i % 11])} {WORDS[i // 11]}", "label": "ab"[i % 2]}
            for i in range(99)
        ]
    }
    spec = job(batch_size=4, gradient_accumulation=accumulated, epochs=2)
    ready = prepare(
        bert,
        spec,
        rows,
        router=Router(bert.trunk),
        features=FeatureStore(),
        check=lambda: None,
        emit=lambda _: None,
    )
    examples = ready.splits["train"].examples
    batches = StepBatches(bert, ready, spec.training.seed, Solo())
    each = ready.resolved.steps_per_epoch
    assert ready.resolved.total_steps == 2 * each
    orders: list[list[int]] = []
    for epoch in (0, 1):
        met: list[Batch] = []
        for step in range(epoch * each, (epoch + 1) * each):
            found = [batch for batch in batches.of_step(step) if batch is not None]
            assert 1 <= len(found) <= accumulated
            met += found
        orders.append([id(example) for batch in met for example in batch.examples])
        assert sorted(orders[-1]) == sorted(map(id, examples))
        given = sum(batch.input_ids.numel() for batch in met)
        assert sum(batch.tokens for batch in met) > 0.9 * given
    assert orders[0] != orders[1]
