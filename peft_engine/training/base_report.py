"""What deriving a base costs and brings: the base untouched, derived, and with a delta."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from peft_engine.bases.base import Base
from peft_engine.bases.forward import hidden_states
from peft_engine.delta import Delta
from peft_engine.parts.batching import Batch, Example, collate
from peft_engine.parts.spacing import evenly_spaced
from peft_engine.plan import Actor, Plan
from peft_engine.router import Router
from peft_engine.tasks.passes import split_logits
from peft_engine.tasks.protocol import HeadTask, Record
from peft_engine.tasks.table import find_task
from peft_engine.training.forwards import EvaluationForward
from peft_engine.training.head_start import FeatureStore, FrozenBase

_TIMED_ROWS = 32
"""As many as fill the products of a forward."""
_ROUNDS = 5
"""Odd, for a median; the first forward of each is not counted."""
_EVALUATION_ROWS = 32


@torch.no_grad()
def report_base(
    untouched: Base,
    derived: Base,
    delta: Delta,
    splits: Mapping[str, Sequence[Record]],
    *,
    routers: tuple[Router, Router],
    features: tuple[FeatureStore, FeatureStore],
    tuned: Mapping[str, float],
    check: Callable[[], None],
) -> dict[str, Any]:
    """Compare quality, bytes and latency on the test split.

    Args:
        untouched: The base as published.
        derived: The base that the job trained on.
        delta: What it trained.
        splits: Canonical records of ``train`` and ``test``, both with rows.
        routers: Of the two bases.
        features: Frozen features already computed on the two bases.
        tuned: Metrics of the delta on the test split.
        check: Called before each forward; may raise to interrupt.

    Returns:
        ``untouched``, ``derived`` and ``tuned``, each with ``name``, ``parameters``, ``bytes``,
        ``forward_ms`` and ``metrics``; and ``rows`` and ``tokens`` of the forward that was timed.
        Without a delta a task with a head has the one that fits the frozen features best; text is
        judged by the loss, not answered in full.
    """
    task = find_task(delta.manifest.task, splits["train"])
    encoded = {
        name: task.encode(
            untouched,
            splits[name],
            labels=delta.manifest.labels,
            max_length=delta.manifest.max_length,
        )
        for name in ("train", "test")
    }

    def quality(base: Base, router: Router, store: FeatureStore) -> dict[str, float]:
        test = encoded["test"]
        if not isinstance(task, HeadTask):
            forward = EvaluationForward(base, router, None, check)
            found = task.evaluate(
                forward, None, test, splits["test"], batch_size=_EVALUATION_ROWS, generate_rows=0
            )
            return dict(found.metrics)
        frozen = FrozenBase(base, store, check)
        head = frozen.first_head(task, encoded["train"], labels=delta.manifest.labels)
        logits = task.logits(head, frozen.features(task, head.spec, test))
        return dict(
            task.score(head, test, splits["test"], split_logits(task, logits, test)).metrics
        )

    timed = [encoded["test"][i] for i in evenly_spaced(len(encoded["test"]), _TIMED_ROWS)]
    batch = _batch_of(timed, untouched)
    on_derived = delta.to(derived.device)
    milliseconds = _time_in_turn(
        [
            lambda: _forward(untouched, routers[0], None, batch),
            lambda: _forward(derived, routers[1], None, batch),
            lambda: _forward(derived, routers[1], on_derived, batch),
        ],
        check,
    )
    bases = (untouched, derived, derived)
    metrics = (
        quality(untouched, routers[0], features[0]),
        quality(derived, routers[1], features[1]),
        dict(tuned),
    )
    extra = (0, 0, delta.bytes)
    return {
        name: {
            "name": base.name,
            "parameters": base.parameters,
            "bytes": base.bytes + own_bytes,
            "forward_ms": own_milliseconds,
            "metrics": own_metrics,
        }
        for name, base, own_bytes, own_milliseconds, own_metrics in zip(
            ("untouched", "derived", "tuned"), bases, extra, milliseconds, metrics, strict=True
        )
    } | {"rows": batch.rows, "tokens": int(batch.mask.sum())}


def _batch_of(examples: Sequence[Example], base: Base) -> Batch:
    return collate(examples, pad_id=base.text.pad_id, device=base.device)


def _forward(base: Base, router: Router, delta: Delta | None, batch: Batch) -> None:
    actor = None if delta is None else Actor.of(delta)
    with router.use(Plan.build([actor] * batch.rows)):
        hidden_states(base, batch)
    if base.device.type == "cuda":
        torch.cuda.synchronize(base.device)


def _time_in_turn(forwards: Sequence[Callable[[], None]], check: Callable[[], None]) -> list[float]:
    """Median milliseconds of each, in alternating order, so that a busy machine slows all alike."""
    found: list[list[float]] = [[] for _ in forwards]
    for number in range(_ROUNDS + 1):
        order = range(len(forwards)) if number % 2 else reversed(range(len(forwards)))
        for place in order:
            check()
            began = time.perf_counter()
            forwards[place]()
            if number:
                found[place].append(1000 * (time.perf_counter() - began))
    return [round(statistics.median(own), 3) for own in found]
