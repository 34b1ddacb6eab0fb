"""Metrics of written texts against the libraries themselves."""

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from peft_engine.parts.statistics import paired_intervals
from peft_engine.parts.texts import TEXT_METRICS, evaluate_texts

TEXTS = ["the cat sat on the mat", "A dog ran home.", "it rains", "", "nothing alike here"]
REFERENCES = [
    ["the cat sat on a mat", "a cat was on the mat"],
    ["the dog ran home"],
    ["it rains today", " it rains ", "rain"],
    ["an answer was due"],
    ["quite other words"],
]
BY_PLACE = [[own[i] if i < len(own) else None for own in REFERENCES] for i in range(3)]


def test_figures_are_those_of_the_libraries() -> None:
    found = evaluate_texts(TEXTS, REFERENCES)
    assert tuple(found.metrics) == TEXT_METRICS
    assert found.metrics["bleu"] == pytest.approx(BLEU().corpus_score(TEXTS, BY_PLACE).score)
    assert found.metrics["chrf"] == pytest.approx(CHRF().corpus_score(TEXTS, BY_PLACE).score)
    for name in ("rouge1", "rouge2", "rougeL"):
        scorer = RougeScorer([name])  # its own tokeniser
        best = [
            max(scorer.score(right, text)[name].fmeasure for right in own)
            for text, own in zip(TEXTS, REFERENCES, strict=True)
        ]
        assert found.metrics[name] == pytest.approx(100 * np.mean(best)), name
    assert found.metrics["exact_match"] == 1 / 5


def test_a_resample_is_the_score_of_the_rows_that_were_drawn() -> None:
    found = evaluate_texts(TEXTS, REFERENCES)
    drawn = [0, 0, 2, 4, 1]
    weights = np.bincount(drawn, minlength=5)[None].astype(float)
    texts = [TEXTS[i] for i in drawn]
    places = [[row[i] for i in drawn] for row in BY_PLACE]
    assert found.rows["bleu"].resample(weights)[0] == pytest.approx(
        BLEU().corpus_score(texts, places).score
    )
    assert found.rows["chrf"].resample(weights)[0] == pytest.approx(
        CHRF().corpus_score(texts, places).score
    )
    again = evaluate_texts(texts, [REFERENCES[i] for i in drawn])
    for name in TEXT_METRICS:
        assert found.rows[name].resample(weights)[0] == pytest.approx(again.metrics[name]), name
    same = paired_intervals(found.rows, found.rows)
    assert all((own.low, own.high) == (0, 0) for own in same.values())


@pytest.mark.parametrize(
    ("text", "reference", "words_shared", "words"),
    [
        ("café au lait", "un café", 1, (3, 2)),  # the accent stays inside its word
        ("今天下雨", "今天晴", 2, (4, 3)),  # every sign a word
        ("Дом снова", "дом", 1, (2, 1)),
        ("कि", "का", 0, (1, 1)),  # a vowel sign is part of its word
        ("हिन्दी भाषा", "हिन्दी", 1, (2, 1)),
        ("ที่", "ทู", 0, (1, 1)),
        ("cafe\u0301 noir", "caf\u00e9", 1, (2, 1)),  # the accent apart or not
        ("\u2764\ufe0f snake_case \U0001f44d", "snake", 1, (2, 1)),  # signs are no words
    ],
)
def test_rouge_reads_other_letters_than_a_to_z(
    text: str, reference: str, words_shared: int, words: tuple[int, int]
) -> None:
    found = evaluate_texts([text], [[reference]]).metrics["rouge1"]
    assert found == pytest.approx(100 * 2 * words_shared / sum(words))


def test_empty_answers_score_nothing() -> None:
    assert set(evaluate_texts(["", ""], [["one"], ["two"]]).metrics.values()) == {0.0}
