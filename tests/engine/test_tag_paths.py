"""Tags of a row decided together, against all ways through it; and what left-out rows choose."""

from itertools import product
from math import exp

import pytest
import torch

from peft_engine.configs.manifest import Manifest, TagHeadSpec
from peft_engine.delta import compute_digest
from peft_engine.errors import DeltaError
from peft_engine.parts import tag_choices
from peft_engine.parts.batching import Example, TokenRow
from peft_engine.parts.tag_choices import (
    TagChoice,
    choose_for_tags,
    penalize_outside,
    pick_best,
)
from peft_engine.parts.tag_paths import (
    SMOOTHING_WORDS,
    TRANSITION_WEIGHT,
    best_path,
    decide_tags,
    fit_transitions,
    grow_transitions,
)
from peft_engine.parts.tags import Tags
from peft_engine.parts.words import Words

OLD_DIGEST = "sha256:abe99be86c118650e10ddc42002ce6c51dad9028b0e7fa62ace7069b4b317727"
ROWS = ([0, 1, 2, 0], [0, 0], [1, 2, 2], [])


def _worth(way: tuple[int, ...], logits: torch.Tensor, steps: torch.Tensor) -> float:
    before = (0, *(1 + tag for tag in way[:-1]))
    own = logits.double().log_softmax(-1)[range(len(way)), way].sum()
    return float(own + steps.double()[before, way].sum())


def test_the_best_path_is_the_best_of_all_ways() -> None:
    generator = torch.Generator().manual_seed(0)
    moved = 0
    for words in (1, 2, 5) * 20:
        logits = torch.randn(words, 3, generator=generator)
        steps = torch.randn(4, 3, generator=generator)
        found = best_path(logits, steps)
        ways = {way: _worth(way, logits, steps) for way in product(range(3), repeat=words)}
        assert tuple(found.tolist()) == max(ways, key=lambda way: ways[way])
        moved += not torch.equal(found, logits.argmax(-1))
    assert moved > 20  # deciding together is not deciding word by word


def test_without_preferences_each_word_is_decided_by_itself() -> None:
    logits = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(best_path(logits, torch.zeros(5, 4)), logits.argmax(-1))
    assert best_path(torch.zeros(0, 4), torch.zeros(5, 4)).tolist() == []


def test_transitions_are_how_much_likelier_a_tag_is_behind_another() -> None:
    found = fit_transitions(ROWS, classes=4)  # tag 3 is never seen
    assert found.shape == (5, 4)
    anywhere = (torch.tensor([4.0, 2, 3, 0]) + 1) / 13  # of nine words
    behind_one = (torch.tensor([0.0, 0, 2, 0]) + SMOOTHING_WORDS * anywhere) / (2 + SMOOTHING_WORDS)
    assert torch.allclose(found[2], TRANSITION_WEIGHT * (behind_one / anywhere).log(), atol=1e-6)
    first = (torch.tensor([2.0, 1, 0, 0]) + SMOOTHING_WORDS * anywhere) / (3 + SMOOTHING_WORDS)
    assert torch.allclose(found[0], TRANSITION_WEIGHT * (first / anywhere).log(), atol=1e-6)
    assert torch.allclose(found[4], torch.zeros(4), atol=1e-6)  # behind a tag that was never seen


def test_old_transitions_stay_when_tags_are_added() -> None:
    kept, fresh = fit_transitions(ROWS, classes=3), fit_transitions([[3, 4, 0]], classes=5)
    grown = grow_transitions(kept, fresh)
    assert torch.equal(grown[:4, :3], kept)
    assert torch.equal(grown[4:], fresh[4:])
    assert torch.equal(grown[:, 3:], fresh[:, 3:])


def test_transitions_of_other_tags_are_refused() -> None:
    with pytest.raises(DeltaError, match="do not fit 3 tags"):
        best_path(torch.zeros(2, 3), torch.zeros(5, 4))


@pytest.mark.parametrize(
    ("word_by_word", "together", "expected"),
    [
        # the strongest table within a point of the best, and together unless that is worse
        ((0.50, 0.60, 0.20), (0.55, 0.65, 0.30), TagChoice(1.0, together=True)),
        ((0.70, 0.60, 0.695), (0.60, 0.60, 0.60), TagChoice(4.0, together=False)),
        ((0.50, 0.20, 0.20), (0.50, 0.20, 0.20), TagChoice(0.0, together=True)),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), TagChoice(0.0, together=False)),
    ],
)
def test_left_out_rows_choose(
    word_by_word: tuple[float, ...], together: tuple[float, ...], expected: TagChoice
) -> None:
    values = {
        (strength, joint): own[place]
        for joint, own in ((False, word_by_word), (True, together))
        for place, strength in enumerate((0.0, 1.0, 4.0))
    }
    assert pick_best(values) == expected


def test_a_penalty_on_o_is_what_it_says() -> None:
    logits = torch.tensor([[1.0, 0.4, 0.0], [1.0, 0.6, 0.0], [0.0, 1.0, 2.0]])
    kept = logits.clone()
    for transitions in (None, torch.zeros(4, 3)):
        found = decide_tags(logits, transitions=transitions, outside=0, outside_penalty=0.5)
        assert found.tolist() == [0, 1, 2]
        found = decide_tags(logits, transitions=transitions, outside=2, outside_penalty=1.5)
        assert found.tolist() == [0, 0, 1]
    assert torch.equal(logits, kept)  # losses and probabilities do not know it


@pytest.mark.parametrize("f1", [0.05, 0.5, 0.9, 1.0])
def test_what_is_likelier_than_half_of_f1_is_answered(f1: float) -> None:
    odds = (f1 / 2) / (1 - f1 / 2)
    assert exp(-penalize_outside(f1)) == pytest.approx(odds, rel=1e-3)


def _rows_of_one_word(shares: dict[int, float], rows: int) -> tuple[list[Example], torch.Tensor]:
    """Rows of kinds in turn, of each kind that share names; one feature tells the kinds apart."""
    kinds = sorted(shares)
    examples, features = [], torch.zeros(rows, len(kinds))
    for place in range(rows):
        kind, turn = place % len(kinds), place // len(kinds)
        named = int((turn + 1) * shares[kinds[kind]]) > int(turn * shares[kinds[kind]])
        words = Words(f"w{place}", ((0, 2),), (0,), (1,), given=True)
        row = TokenRow((1, 2), None)
        examples.append(Example((row,), Tags((int(named),)), 0, place, words))
        features[place, kind] = 1.0
    return examples, features


def _choose(examples: list[Example], features: torch.Tensor) -> TagChoice:
    places = torch.arange(len(examples))
    labels = ("O", "B-x", "I-x")
    return choose_for_tags(examples, features, places, labels=labels, check=lambda: None)


def test_left_out_rows_choose_the_penalty_that_suits_their_f1() -> None:
    """One kind of word is a name in nine of ten cases, one in four, one never.

    By what is likeliest only the first is answered: 36 of 54 names are found, beside 4 inventions.
    Answering the second too finds all, beside 26.
    """
    examples, features = _rows_of_one_word({0: 0.9, 1: 0.45, 2: 0.0}, rows=120)
    chosen = _choose(examples, features)
    by_the_likeliest = 2 * 36 / (40 + 54)
    assert chosen.outside_penalty == penalize_outside(by_the_likeliest)


def test_a_penalty_that_costs_f1_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tag_choices, "penalize_outside", lambda _: 20.0)  # every word a name
    chosen = _choose(*_rows_of_one_word({0: 0.9, 1: 0.45, 2: 0.0}, rows=120))
    assert chosen.outside_penalty == 0.0


def test_heads_without_later_fields_keep_their_digest() -> None:
    """The number was computed before heads could have them."""
    manifest = Manifest(
        base_model="b",
        base_fingerprint="f",
        architecture="encoder",
        precision="fp32",
        task="token-classification",
        methods=(),
        labels=("O", "B-x", "I-x"),
        head=TagHeadSpec(token="first", scale=0.5, spelling=True, words=8),
        template_digest="t",
        max_length=16,
    )
    found = compute_digest({"head:bias": torch.zeros(3)}, manifest)
    assert found == OLD_DIGEST
