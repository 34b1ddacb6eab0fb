"""Did it help: the test split before and after, with a paired interval."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import linear

from peft_engine.bases.base import Base
from peft_engine.configs.job import JobSpec
from peft_engine.parts.batching import Example
from peft_engine.parts.statistics import Evaluation, paired_interval
from peft_engine.plan import Actor
from peft_engine.router import Router
from peft_engine.tasks.protocol import Head
from peft_engine.tasks.text_classification import evaluate_logits
from peft_engine.training.forwards import EvaluationForward
from peft_engine.training.head_start import FeatureStore, centroid_logits
from peft_engine.training.prepare import Prepared, first_head

BEFORE_CENTROID = "nearest class centroid of the frozen base's features"
BEFORE_UNTUNED = "the untuned base"


@torch.no_grad()
def report_test(
    base: Base,
    router: Router,
    job: Prepared,
    spec: JobSpec,
    *,
    features: FeatureStore,
    check: Callable[[], None],
) -> dict[str, Any]:
    """Evaluate the values as they are now, and the untuned base, on the test split.

    Args:
        base: The base.
        router: Its router.
        job: The job, its parameters at the best step.
        spec: How many rows to answer in full.
        features: Frozen features already computed.
        check: Called before each forward; may raise to interrupt.

    Returns:
        See ``compare``; ``rows`` of the split and, for tasks with a head, ``frozen_head``.
    """
    split = job.splits["test"]

    def evaluate(actor: Actor | None, head: Head | None) -> Evaluation:
        return job.task.evaluate(
            EvaluationForward(base, router, actor, check),
            head,
            split.examples,
            split.records,
            batch_size=job.evaluation_rows,
            generate_rows=spec.training.eval_generate_rows,
        )

    head = job.trainable.head()
    after = evaluate(job.trainable.actor(training=False), head)
    rows = {"rows": len(split.examples)}
    if head is None:
        return compare(evaluate(None, None), after, before_is=BEFORE_UNTUNED) | rows
    train = job.splits["train"].examples
    before, frozen = classify_before(
        base,
        features,
        train=train,
        asked=split.examples,
        head=first_head(base, train, labels=head.labels, features=features, check=check),
        check=check,
    )
    report = compare(before, after, before_is=BEFORE_CENTROID)
    return report | rows | {"frozen_head": dict(frozen.metrics)}


def compare(before: Evaluation, after: Evaluation, *, before_is: str) -> dict[str, Any]:
    """Both models on the same rows.

    Args:
        before: The honest untuned base.
        after: The tuned delta.
        before_is: What ``before`` is, in words.

    Returns:
        ``before``, ``after``, their difference ``delta`` and its 95 % ``confidence_interval`` for
        every metric that both have; ``before_is``.
    """
    shared = [name for name in after.metrics if name in before.metrics]
    intervals = {
        name: paired_interval(before.rows[name], after.rows[name])
        for name in shared
        if name in before.rows and name in after.rows
    }
    return {
        "before": dict(before.metrics),
        "after": dict(after.metrics),
        "delta": {name: after.metrics[name] - before.metrics[name] for name in shared},
        "confidence_interval": {name: [i.low, i.high] for name, i in intervals.items()},
        "before_is": before_is,
    }


def classify_before(
    base: Base,
    features: FeatureStore,
    *,
    train: Sequence[Example],
    asked: Sequence[Example],
    head: Head,
    check: Callable[[], None],
) -> tuple[Evaluation, Evaluation]:
    """What the frozen base alone knows of the classes.

    Args:
        base: The base.
        features: Frozen features already computed.
        train: Training examples.
        asked: Examples to classify.
        head: The head that fits the frozen features best.
        check: Called before each forward; may raise to interrupt.

    Returns:
        The nearest class centroid, and the frozen head.
    """
    known = features.get(base, train, check=check)
    found = features.get(base, asked, check=check)
    targets = torch.tensor([example.target for example in train])
    wanted = torch.tensor([example.target for example in asked]).numpy()
    centroid = centroid_logits(known, targets, found, classes=len(head.labels))
    frozen = linear(found, head.tensors["weight"].cpu(), head.tensors["bias"].cpu())
    return evaluate_logits(centroid, wanted), evaluate_logits(frozen, wanted)
