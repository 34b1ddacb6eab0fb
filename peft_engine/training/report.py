"""Did it help: a split before and after, with a paired interval for every metric."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from peft_engine.bases.base import Base
from peft_engine.configs.job import JobSpec
from peft_engine.parts.statistics import Evaluation, paired_intervals
from peft_engine.plan import Actor
from peft_engine.router import Router
from peft_engine.tasks.passes import split_logits
from peft_engine.tasks.protocol import Baseline, Encoded, Head, HeadTask
from peft_engine.training.adversarial import report_robustness
from peft_engine.training.forwards import EvaluationForward
from peft_engine.training.head_start import FeatureStore, FrozenBase
from peft_engine.training.prepare import START_UNTUNED, Prepared
from peft_engine.training.selection import gain
from peft_engine.training.verdict import add_verdict


@torch.no_grad()
def report_split(
    base: Base,
    router: Router,
    job: Prepared,
    spec: JobSpec,
    *,
    name: Literal["validation", "test"],
    features: FeatureStore,
    check: Callable[[], None],
    on_evaluated: Callable[[str, Evaluation], None],
) -> dict[str, Any]:
    """Evaluate the values as they are now, and what can be had without tuning, on a split.

    Args:
        base: The base.
        router: Its router.
        job: The job, its parameters at the best step.
        spec: How many rows to answer in full.
        name: Which split; only the test split has a verdict, since the best step was chosen on
            validation.
        features: Frozen features already computed.
        check: Called before each forward; may raise to interrupt.
        on_evaluated: Given the name of the split and the evaluation of the values as they are now.

    Returns:
        See ``compare``; ``rows`` of the split; ``baselines``, all that was looked at for
        ``before``, which for a job that continues from a parent is that parent; for other tasks
        with a head ``frozen_head``, its metrics, and ``against_frozen_head``, what the adapter adds
        to it. Of the test split also what ``add_verdict`` adds, ``details`` where the task has
        some, and for adversarial training ``robustness``.
    """
    split, task = job.splits[name], job.task
    rows = job.resolved.validation_generate_rows
    if name == "test":
        rows = spec.training.eval_generate_rows

    def evaluate(actor: Actor | None, head: Head | None, *, answered: int = rows) -> Evaluation:
        return task.evaluate(
            EvaluationForward(base, router, actor, check),
            head,
            split.examples,
            split.records,
            batch_size=job.evaluation_rows,
            generate_rows=answered,
        )

    actor, head = job.trainable.actor(training=False), job.trainable.head()
    after, start = evaluate(actor, head), _start_of(base, job)
    report: dict[str, Any] = {"rows": len(split.records)}
    frozen = FrozenBase(base, features, check)
    found: Sequence[Baseline]
    asked = job.resolved.metric
    if job.start is not None:
        best = Baseline(evaluate(*start), job.start_is, report["rows"])
        found = (best, *_untuned(job, frozen, split, lambda: evaluate(None, None, answered=0)))
    elif job.first_head is None or not isinstance(task, HeadTask):
        best = Baseline(evaluate(None, None), START_UNTUNED, report["rows"])
        found = (best,)
    else:
        found = task.baselines(frozen, job.first_head, job.splits["train"], split)
        best = choose_baseline(found, [asked, task.metric], rows=report["rows"])
        floor = _frozen_floor(task, frozen, job.first_head, split)
        added = compare(floor, after)
        report["frozen_head"] = dict(floor.metrics)
        report["against_frozen_head"] = {n: added[n] for n in ("delta", "confidence_interval")}
    report |= compare(best.evaluation, after) | {"before_is": best.what}
    report["baselines"] = [
        {"what": own.what, "rows": own.rows, "metrics": dict(own.evaluation.metrics)}
        for own in found
    ]
    on_evaluated(name, after)
    if name == "validation":
        return report
    if after.details:
        report["details"] = dict(after.details)
    if spec.training.adversarial is not None:
        report["robustness"] = report_robustness(
            base,
            router,
            task,
            split,
            spec.training.adversarial,
            before=start,
            after=(actor, head),
            before_is=job.start_is,
            batch_size=job.evaluation_rows,
            check=check,
        )
    decides = asked if asked in report["confidence_interval"] else task.metric
    return add_verdict(
        report, metric=decides, rows=min(len(split.records), after.rows[decides].count)
    )


def _start_of(base: Base, job: Prepared) -> tuple[Actor | None, Head | None]:
    """What training started from: the parent, or the frozen base with the head that fits it."""
    if job.start is not None:
        return job.start.actor(training=False), job.start.head()
    return None, _on(base, job.first_head)


def _untuned(
    job: Prepared, frozen: FrozenBase, split: Encoded, plain: Callable[[], Evaluation]
) -> Sequence[Baseline]:
    """What stands beside a parent: the base without it; text is not answered in full for that."""
    head = None if job.start is None else job.start.head()
    if head is None or not isinstance(job.task, HeadTask):
        return (Baseline(plain(), START_UNTUNED, len(split.records)),)
    return job.task.baselines(frozen, head, job.splits["train"], split)


def choose_baseline(found: Sequence[Baseline], metrics: Sequence[str], *, rows: int) -> Baseline:
    """What a job is compared with: the best of what can be had without tuning.

    The choice looks at the very rows that are compared, which favours the baseline.

    Args:
        found: At least one that was evaluated on all rows.
        metrics: Names of metrics; the first that they all have decides.
        rows: How many rows all are.

    Returns:
        The best one; of equals the first.
    """
    whole = [own for own in found if own.rows == rows]
    metric = next(m for m in metrics if all(m in own.evaluation.metrics for own in whole))
    best = whole[0]
    for own in whole[1:]:
        if gain(own.evaluation.metrics, best.evaluation.metrics, metric=metric) > 0:
            best = own
    return best


def compare(before: Evaluation, after: Evaluation) -> dict[str, Any]:
    """Both models on the same rows.

    Args:
        before: The honest untuned base.
        after: The tuned delta.

    Returns:
        ``before``, ``after``, their difference ``delta`` and its 95 % ``confidence_interval`` for
        every metric that both have.
    """
    shared = [name for name in after.metrics if name in before.metrics]
    intervals = paired_intervals(before.rows, after.rows)
    return {
        "before": dict(before.metrics),
        "after": dict(after.metrics),
        "delta": {name: after.metrics[name] - before.metrics[name] for name in shared},
        "confidence_interval": {name: [i.low, i.high] for name, i in intervals.items()},
    }


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
