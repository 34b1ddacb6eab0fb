"""Numbers: closed forms, scikit-learn, transformers."""

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from transformers import BertForSequenceClassification

from peft_engine.bases.base import Base
from peft_engine.bases.forward import hidden_states
from peft_engine.configs.manifest import ValueHeadSpec
from peft_engine.errors import RowError
from peft_engine.parts.batching import collate
from peft_engine.parts.fits import fit_ridge
from peft_engine.tasks.protocol import Head
from peft_engine.tasks.regression import Regression, evaluate_values
from tests.engine.conftest import head_on


def test_metrics_are_those_of_scipy_and_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    wanted = generator.normal(3, 2, 200)
    found = np.round(wanted + generator.normal(0, 2, 200), 1)
    metrics = evaluate_values(found, wanted, spread=2.0)
    assert metrics.metrics["pearson"] == pytest.approx(pearsonr(found, wanted).statistic)
    assert metrics.metrics["spearman"] == pytest.approx(spearmanr(found, wanted).statistic)
    assert metrics.metrics["rmse"] == pytest.approx(root_mean_squared_error(wanted, found))
    assert metrics.metrics["mae"] == pytest.approx(mean_absolute_error(wanted, found))
    assert metrics.metrics["r2"] == pytest.approx(r2_score(wanted, found))
    for name, rows in metrics.rows.items():
        assert rows.value == pytest.approx(metrics.metrics[name]), name


def test_resampled_correlations_are_those_of_the_rows_that_were_drawn() -> None:
    generator = np.random.default_rng(1)
    wanted = generator.integers(0, 6, 40) * 1e-7  # ties, and small numbers
    found = np.round(wanted + generator.normal(0, 1e-7, 40), 8)
    rows = evaluate_values(found, wanted, spread=1e-7).rows
    drawn = generator.integers(0, 40, (5, 40))
    weights = np.stack([np.bincount(own, minlength=40) for own in drawn]).astype(float)
    for name, theirs in (("pearson", pearsonr), ("spearman", spearmanr)):
        expected = [theirs(found[own], wanted[own]).statistic for own in drawn]
        assert rows[name].resample(weights).tolist() == pytest.approx(expected), name
    expected = [r2_score(wanted[own], found[own]) for own in drawn]
    assert rows["r2"].resample(weights).tolist() == pytest.approx(expected)
    same = np.zeros((1, 40))
    same[0, 3] = 40  # one row alone has no correlation
    assert all(rows[name].resample(same)[0] == 0 for name in ("pearson", "spearman", "r2"))


def test_a_constant_has_no_correlation_and_warns_nobody() -> None:
    found = evaluate_values(np.full(5, 2.0), np.arange(5.0), spread=1.0)
    assert found.metrics["pearson"] == found.metrics["spearman"] == 0.0
    noise = np.full(5, 0.1) + np.array([0, 1e-17, 0, 2e-17, 0])
    assert evaluate_values(noise, np.arange(5.0), spread=1.0).metrics["pearson"] == 0.0
    assert evaluate_values(np.arange(5.0), np.ones(5), spread=1.0).metrics["r2"] == 0.0
    assert evaluate_values(np.ones(1), np.ones(1), spread=1.0).metrics["pearson"] == 0.0


def test_ridge_is_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 5, generator=generator)
    targets = features @ torch.tensor([1.0, -2, 0, 0, 3]) + 0.5
    found = fit_ridge(features, targets)
    assert found["weight"][0].tolist() == pytest.approx([1, -2, 0, 0, 3], abs=1e-2)
    assert found["bias"].tolist() == pytest.approx([0.5], abs=1e-2)


def test_the_loss_is_that_of_transformers(bert: Base) -> None:
    """Mean squared error of a head with one output; its pooler is what it is for a sentence."""
    theirs = BertForSequenceClassification(bert.model.config)
    theirs.config.num_labels, theirs.num_labels = 1, 1
    theirs.classifier = torch.nn.Linear(bert.hidden_size, 1)
    theirs.bert.load_state_dict(bert.model.state_dict())
    theirs.eval().to(bert.device)

    class MeanOfUnitLength(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.normalize(hidden.mean(1), dim=-1)

    theirs.bert.pooler = MeanOfUnitLength()
    records = [{"text": "where is my", "value": 2.5}, {"text": "my card late", "value": -1.0}]
    spec = ValueHeadSpec(pooling="mean", reading="joined", center=0.0, spread=1.0)
    head = Head(spec, dict(theirs.classifier.named_parameters()), ())
    task = Regression()
    examples = task.encode(bert, records, labels=None, max_length=20)
    batch = collate(examples, pad_id=0, device=bert.device)
    with torch.no_grad():
        loss = task.loss(bert, head, hidden_states(bert, batch), batch, label_smoothing=0.0)
        values = torch.tensor([[2.5], [-1.0]], device=bert.device)
        expected = theirs(input_ids=batch.input_ids, labels=values).loss
    assert float(loss.total / loss.count) == pytest.approx(float(expected), rel=1e-5)


def test_a_sentence_encoder_reads_pairs_apart_and_sees_their_cosine(
    bert: Base, sentence_bert: Base
) -> None:
    task = Regression()
    record = {"text": "where is my card", "text_pair": "money", "value": 1.0}
    (joined,) = task.encode(bert, [record], labels=None, max_length=20)
    (apart,) = task.encode(sentence_bert, [record], labels=None, max_length=20)
    assert (len(joined.rows), len(apart.rows)) == (1, 2)
    spec = ValueHeadSpec(pooling="mean", reading="apart", center=0.0, spread=1.0)
    batch = collate([apart], pad_id=0, device=bert.device)
    with torch.no_grad():
        features = task.features(spec, hidden_states(sentence_bert, batch), batch)
        sides = []
        for text in ("where is my card", "money"):
            encoded = sentence_bert.text.encode_inputs([text], max_length=20)[0]
            ids = torch.tensor([encoded.input_ids], device=bert.device)
            sides.append(sentence_bert.trunk(input_ids=ids).last_hidden_state.mean(1)[0])
    assert features.shape == (1, 2 * 32 + 1)
    cosine = torch.nn.functional.cosine_similarity(*sides, dim=0)
    assert float(features[0, -1]) == pytest.approx(float(cosine), abs=1e-5)
    with pytest.raises(RowError) as caught:
        task.encode_input(sentence_bert, "one text", max_length=20, spec=spec)
    assert (caught.value.code, caught.value.param) == ("bad_input", "input.text_pair")


def test_texts_that_are_read_apart_are_counted_each_by_itself(sentence_bert: Base) -> None:
    """Eleven words are thirteen tokens, whatever stands in the other row."""
    task = Regression()
    value = {"text": "card " * 11, "text_pair": "late " * 11}
    spec = ValueHeadSpec(pooling="mean", reading="apart", center=0.0, spread=1.0)
    (example,) = task.encode_input(sentence_bert, value, max_length=13, spec=spec)
    assert ([row.tokens for row in example.rows], example.cut_tokens) == ([13, 13], 0)
    with pytest.raises(RowError, match="13 tokens and 12 are read at most"):
        task.encode_input(sentence_bert, value, max_length=12, spec=spec)


def test_a_pair_on_a_causal_base_is_counted_with_the_line_between(llama: Base) -> None:
    value = {"text": "a" * 20, "text_pair": "b" * 20}
    (whole,) = Regression().encode_input(llama, value, max_length=41)
    assert (whole.tokens, whole.cut_tokens) == (41, 0)
    with pytest.raises(RowError, match="41 tokens and 40 are read at most"):
        Regression().encode_input(llama, value, max_length=40)


def test_values_far_from_zero_keep_their_differences(bert: Base) -> None:
    """Seconds since 1970, ten apart: fp32 holds every 128th of them."""
    task = Regression()
    spec = ValueHeadSpec(pooling="mean", reading="joined", center=1.7e9, spread=10.0)
    weights = {"weight": torch.zeros(1, bert.hidden_size), "bias": torch.zeros(1)}
    head = head_on(bert, Head(spec, weights, ()))
    records = [{"text": "my card", "value": 1.7e9 + step} for step in (-10.0, 0.0, 20.0)]
    examples = task.encode(bert, records, labels=None, max_length=20)
    batch = collate(examples, pad_id=0, device=bert.device)
    with torch.no_grad():
        loss = task.loss(bert, head, hidden_states(bert, batch), batch, label_smoothing=0.0)
    assert float(loss.total) == pytest.approx(1 + 0 + 4)
