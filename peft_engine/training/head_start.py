"""Features of the frozen base, and the heads that fit them: computed once per data set and kept.

The base never changes and a first head does not depend on a job's seed, so a second job on the same
rows starts at once.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.bases.forward import hidden_states
from peft_engine.configs.manifest import AnyHeadSpec
from peft_engine.parts.batching import Batch, Example, batches_by_length, collate
from peft_engine.tasks.protocol import Head, HeadTask

# Legend of axes: N examples, F features, D width.

_FEATURE_BATCH_ROWS = 64
_MEASURED_BATCH_ROWS = 16
"""Fewer, since what is measured may need the scores of a whole vocabulary."""
_KEPT_HEADS = 16


class FeatureStore:
    """Frozen features of the last few data sets on one base.

    Args:
        limit_bytes: Oldest features leave when all together are larger.
    """

    def __init__(self, limit_bytes: int = 256 << 20) -> None:
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._heads: OrderedDict[str, Head] = OrderedDict()

    def get(self, key: str, compute: Callable[[], Tensor]) -> Tensor:
        """A tensor by its key.

        Args:
            key: Names everything that the tensor depends on.
            compute: Makes it on first use.

        Returns:
            The tensor.
        """
        if key not in self._kept:
            self._kept[key] = compute()
        self._kept.move_to_end(key)
        while (
            len(self._kept) > 1 and sum(t.nbytes for t in self._kept.values()) > self._limit_bytes
        ):
            self._kept.popitem(last=False)
        return self._kept[key]

    def get_head(self, key: str, compute: Callable[[], Head]) -> Head:
        """A first head by its key.

        Args:
            key: Names everything that the head depends on.
            compute: Makes it on first use.

        Returns:
            The head, on the CPU; not to be changed.
        """
        if key not in self._heads:
            self._heads[key] = compute()
        self._heads.move_to_end(key)
        if len(self._heads) > _KEPT_HEADS:
            self._heads.popitem(last=False)
        return self._heads[key]


class FrozenBase:
    """The plain base as tasks may ask it for features.

    Args:
        base: The base.
        store: Features already computed.
        check: Called before each forward and within a fit; may raise to interrupt.
    """

    def __init__(self, base: Base, store: FeatureStore, check: Callable[[], None]) -> None:
        self.base = base
        self._store = store
        self.check = check

    def features(self, task: HeadTask, spec: AnyHeadSpec, examples: Sequence[Example]) -> Tensor:
        """Features of examples in order.

        Args:
            task: Decides which features.
            spec: As for ``HeadTask.features``.
            examples: At least one.

        Returns:
            (F, D) fp32 on the CPU.
        """
        key = _key(self.base, task, spec, examples)
        return self._store.get(key, lambda: self._compute(task, spec, examples))

    @torch.no_grad()
    def measure(self, examples: Sequence[Example], of: Callable[[Tensor, Batch], Tensor]) -> Tensor:
        """One number for each example; see ``Frozen.measure``.

        Args:
            examples: N examples of one row each.
            of: (B, T, D) hidden states and their batch to (B,) numbers.

        Returns:
            (N,) fp32 on the CPU.
        """
        found = torch.zeros(len(examples))  # (N,)
        for places in batches_by_length(examples, batch_size=_MEASURED_BATCH_ROWS):
            self.check()
            own = [examples[place] for place in places]
            batch = collate(own, pad_id=self.base.text.pad_id, device=self.base.device)
            found[places] = of(hidden_states(self.base, batch), batch).float().cpu()
        return found

    def first_head(
        self, task: HeadTask, examples: Sequence[Example], *, labels: tuple[str, ...] | None
    ) -> Head:
        """The head that training starts from.

        Args:
            task: Fits it.
            examples: Training examples with their targets.
            labels: Class names, if the task has them.

        Returns:
            The head, on the CPU; not to be changed.
        """
        digest = hashlib.sha256(f"{_key(self.base, task, None, examples)}|{labels}".encode())
        for example in examples:
            digest.update(f"{example.target}".encode())
        return self._store.get_head(
            digest.hexdigest(), lambda: task.first_head(self, examples, labels=labels)
        )

    def _compute(self, task: HeadTask, spec: AnyHeadSpec, examples: Sequence[Example]) -> Tensor:
        def hidden(batch: Batch) -> Tensor:
            self.check()
            return hidden_states(self.base, batch)

        return compute_features(self.base, hidden, task, spec, examples)


@torch.no_grad()
def compute_features(
    base: Base,
    hidden: Callable[[Batch], Tensor],
    task: HeadTask,
    spec: AnyHeadSpec,
    examples: Sequence[Example],
) -> Tensor:
    """Features of examples in order.

    Args:
        base: The base.
        hidden: Hidden states (B, T, D) of a batch, by the base with or without a delta.
        task: Decides which features.
        spec: As for ``HeadTask.features``.
        examples: At least one.

    Returns:
        (F, D) fp32 on the CPU.
    """
    found: dict[int, Tensor] = {}
    for places in batches_by_length(examples, batch_size=_FEATURE_BATCH_ROWS):
        own = [examples[place] for place in places]
        batch = collate(own, pad_id=base.text.pad_id, device=base.device)
        features = task.features(spec, hidden(batch), batch).cpu()  # (F, D)
        counts = [task.count_features(example) for example in own]
        own_features = features.split(counts)  # type: ignore[no-untyped-call]
        found |= zip(places, own_features, strict=True)
    return torch.cat([found[place] for place in range(len(examples))])


def _key(base: Base, task: HeadTask, spec: AnyHeadSpec | None, examples: Sequence[Example]) -> str:
    settings = f"{base.fingerprint}|{base.precision}|{base.device}|{task.name}|{spec!r}"
    digest = hashlib.sha256(settings.encode())
    for example in examples:
        digest.update(f"{example.rows}{example.layout}".encode())
    return digest.hexdigest()
