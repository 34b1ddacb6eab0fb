"""From which probability on a label is given, chosen by rows left out in turn.

Labels that are likelier than not are best for accuracy. Jobs of several labels are judged by F1,
which is largest when everything likelier than half of that F1 is given: a label that is missed
costs more than one too many, the more so the fewer are found.

Source: Lipton, Elkan and Naryanaswamy 2014 (arXiv 1402.1892), theorem 1.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear

from peft_engine.parts.classes import micro_f1_of_labels
from peft_engine.parts.fits import Check, fit_labels

# Legend of axes: N rows, R rows that are looked at, F features, C labels.

ONE_HALF = 0.5
"""Least probability of a label that is given where a head says nothing else."""
MAX_CHOOSING_ROWS = 4_000
"""Most rows, evenly spaced, that are looked at: ``PARTS`` fits more than the head itself takes."""
PARTS = 4
"""Parts of the rows that are left out in turn, each every fourth row: files are often sorted."""


def choose_threshold(features: Tensor, targets: Tensor, *, check: Check) -> float | None:
    """Least probability of a label that is given, for the best micro F1.

    Args:
        features: (N, F) fp32, of the training rows.
        targets: (N, C) 1 where a row has the label, fp32.
        check: May raise to interrupt.

    Returns:
        Half of the micro F1 that labels likelier than not have over the parts, in thousandths;
        None, for one half, where that finds nothing or gains nothing over the parts.
    """
    step = max(-(-len(features) // MAX_CHOOSING_ROWS), 1)
    features, targets = features[::step], targets[::step]  # (R, F), (R, C)
    if len(features) < PARTS:
        return None
    shares, parts = torch.zeros_like(targets), torch.arange(len(features)) % PARTS
    for part in range(PARTS):
        held = parts == part
        own = fit_labels(features[~held], targets[~held], check=check)
        shares[held] = linear(features[held], own["weight"], own["bias"]).sigmoid()
    wanted = targets.double().numpy()

    def measure(threshold: float) -> float:
        return micro_f1_of_labels(wanted, (shares > threshold).double().numpy()).value

    likelier_than_not = measure(ONE_HALF)
    threshold = round(likelier_than_not / 2, 3)
    gains = threshold > 0 and measure(threshold) > likelier_than_not
    return threshold if gains else None
