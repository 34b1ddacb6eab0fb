"""Did it help: the test split before and after, with a paired interval."""

from collections.abc import Callable
from typing import Any

import torch

from peft_engine.bases.base import Base
from peft_engine.configs.job import JobSpec
from peft_engine.parts.statistics import Evaluation, paired_interval
from peft_engine.plan import Actor
from peft_engine.router import Router
from peft_engine.tasks.passes import split_logits
from peft_engine.tasks.protocol import Encoded, Head, HeadTask
from peft_engine.training.adversarial import report_robustness
from peft_engine.training.forwards import EvaluationForward
from peft_engine.training.head_start import FeatureStore, FrozenBase
from peft_engine.training.prepare import Prepared

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
        See ``compare``; ``rows`` of the split; for tasks with a head ``frozen_head``, its metrics,
        and ``against_frozen_head``, what the adapter adds to it; for adversarial training
        ``robustness``.
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

    head, task = job.trainable.head(), job.task
    after = evaluate(job.trainable.actor(training=False), head)
    rows: dict[str, Any] = {"rows": len(split.records)}
    if spec.training.adversarial is not None:
        rows["robustness"] = report_robustness(
            base,
            router,
            task,
            split,
            spec.training.adversarial,
            before=(None, _on(base, job.first_head)),
            after=(job.trainable.actor(training=False), head),
            batch_size=job.evaluation_rows,
            check=check,
        )
    if job.first_head is None or not isinstance(task, HeadTask):
        return compare(evaluate(None, None), after, before_is=BEFORE_UNTUNED) | rows
    frozen = FrozenBase(base, features, check)
    before = task.before(frozen, job.first_head, job.splits["train"], split)
    floor = _frozen_floor(task, frozen, job.first_head, split)
    report = compare(before.evaluation, after, before_is=before.what)
    added = compare(floor, after, before_is="")
    rows["frozen_head"] = dict(floor.metrics)
    rows["against_frozen_head"] = {name: added[name] for name in ("delta", "confidence_interval")}
    return report | rows


def _on(base: Base, head: Head | None) -> Head | None:
    """The head on the device of the base."""
    if head is None:
        return None
    moved = {name: tensor.to(base.device) for name, tensor in head.tensors.items()}
    return Head(head.spec, moved, head.labels)


def _frozen_floor(task: HeadTask, frozen: FrozenBase, head: Head, split: Encoded) -> Evaluation:
    """What the head that fits the frozen features best is worth."""
    logits = task.logits(head, frozen.features(task, head.spec, split.examples))
    own = split_logits(task, logits, split.examples)
    return task.score(head, split.examples, split.records, own)


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
