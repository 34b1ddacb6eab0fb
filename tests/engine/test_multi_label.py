"""Several labels a row, against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, classification_report, f1_score, log_loss

from peft_engine.bases.base import Base
from peft_engine.errors import DataError
from peft_engine.parts.fits import fit_labels
from peft_engine.tasks.multi_label import evaluate_labels
from tests.engine.task_sets import SETS
from tests.engine.test_training import job, run


def test_metrics_are_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 4, generator=generator)
    targets = (torch.rand(50, 4, generator=generator) < 0.4).float()
    targets[:, 3], logits[:, 3] = 0, -1  # a label that stands nowhere
    evaluation = evaluate_labels(logits, targets, labels="abcd")
    found = evaluation.metrics
    wanted, given = targets.numpy(), (logits > 0).numpy()
    assert found["subset_accuracy"] == accuracy_score(wanted, given)
    for average in ("micro", "macro", "weighted"):
        expected = f1_score(wanted, given, average=average, zero_division=0)
        assert found[f"{average}_f1"] == pytest.approx(expected)
    shares = logits.double().sigmoid().numpy()
    each = [log_loss(wanted[:, i], shares[:, i], labels=[0, 1]) for i in range(4)]
    assert found["loss"] == pytest.approx(np.mean(each))
    for name, rows in evaluation.rows.items():
        assert rows.value == pytest.approx(found[name]), name
    assert [row["label"] for row in evaluation.details["classes"]][-1] == "d"
    report = classification_report(
        wanted, given, target_names=list("abcd"), output_dict=True, zero_division=0
    )
    for row in evaluation.details["classes"]:
        own = report[row["label"]]
        assert row["support"] == own["support"]
        for name in ("precision", "recall"):
            assert row[name] == pytest.approx(own[name], abs=1e-6)


def test_the_first_head_is_one_logistic_regression_a_label() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(120, 6, generator=generator), dim=-1)
    targets = torch.stack([features[:, 0] > 0, features[:, 1] > 0.2], 1).float()
    found = fit_labels(features, targets)
    ours = torch.nn.functional.linear(features, found["weight"], found["bias"]).sigmoid()
    for label in range(2):
        theirs = LogisticRegression(C=10, max_iter=1000, tol=1e-8)
        theirs.fit(features.numpy(), targets[:, label].numpy())
        shares = theirs.predict_proba(features.numpy())[:, 1]
        assert np.abs(ours[:, label].numpy() - shares).max() < 2e-3


def test_rows_with_one_label_among_rows_with_several_are_refused(bert: Base) -> None:
    _, splits = SETS["multi-label"]
    mixed = {**splits, "train": [*splits["train"], {"text": "card", "label": "card"}]}
    with pytest.raises(DataError) as caught:
        run(bert, job(), mixed)
    assert caught.value.code == "mixed_labels"
