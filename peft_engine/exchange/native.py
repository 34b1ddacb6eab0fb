"""A native file that was brought along: nothing that it says of itself is taken on trust."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.configs.manifest import AnyHeadSpec
from peft_engine.delta import Delta, check_delta, load_delta
from peft_engine.errors import ConfigError, DeltaError, EngineError, RowError
from peft_engine.exchange.findings import Findings
from peft_engine.parts.batching import Example, collate
from peft_engine.tasks.passes import split_logits
from peft_engine.tasks.protocol import Head, HeadTask
from peft_engine.tasks.table import HEAD_TASKS, TASKS

# Legend of axes: B rows, T tokens, D width, F features, C scores of a feature.

_SPAN = {"start": 0, "end": 1}
_INPUTS: Mapping[str, tuple[Any, ...]] = {
    "linear": ("a b", {"text": "a", "text_pair": "b"}),
    "multi-label": ("a b", {"text": "a", "text_pair": "b"}),
    "value": ("a b", {"text": "a", "text_pair": "b"}),
    "tags": ({"tokens": ["a", "b"]},),
    "relation": ({"text": "a b", "head": _SPAN, "tail": {"start": 2, "end": 3}},),
    "span": ({"question": "a", "context": "b"},),
    "choice": ({"question": "a", "choices": ["b", "c"]},),
}
"""Inputs for the head of each kind, of which it takes one."""
_SCORES: Mapping[str, int] = {"value": 1, "choice": 1, "span": 2}
"""Scores of a feature where they are not those of the labels."""


def read_native(base: Base, path: Path, found: Findings) -> Delta | None:
    """Read and check a native file.

    Args:
        base: The base that it belongs to.
        path: The file.
        found: Receives every reason to refuse.

    Returns:
        The delta; None when it cannot be read. It may be used only if nothing was found.
    """
    try:
        delta = load_delta(path)
        check_delta(
            delta, base.trunk, fingerprint=base.fingerprint, template_digest=base.template_digest
        )
    except (DeltaError, ConfigError) as error:
        found.refuse(error.code, error.message, path.name)
        return None
    _check_task(base, delta, found)
    return delta


def _check_task(base: Base, delta: Delta, found: Findings) -> None:
    manifest = delta.manifest
    names, labels = [method.type for method in manifest.methods], manifest.labels or ()
    if not names or len(set(names)) < len(names):
        told = "no method" if not names else "a method twice"
        found.refuse("delta_corrupt", f"names {told}", "methods")
    if len(set(labels)) < len(labels) or not all(labels):
        found.refuse("delta_corrupt", "names a label twice, or an empty one", "labels")
    if manifest.max_length > base.max_length:
        what = f"rows of {manifest.max_length} tokens are longer than the base's {base.max_length}"
        found.refuse("delta_corrupt", what, "max_length")
        return
    if manifest.task not in TASKS:
        found.refuse("delta_corrupt", f"there is no task {manifest.task[:64]!r}", "task")
        return
    if manifest.head is None:
        found.refuse_all("delta_corrupt", "belongs to no head", delta.head)
        return
    task = HEAD_TASKS[manifest.head.kind]
    if task.name != manifest.task:
        what = f"a head of kind {manifest.head.kind!r} does not answer {manifest.task}"
        found.refuse("delta_corrupt", what, "head")
        return
    _try_head(base, task, manifest.head, delta, found)


class _Noted(Mapping[str, Tensor]):
    """Tensors that know which of them were read."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self.unread = set(tensors)

    def __getitem__(self, name: str) -> Tensor:
        self.unread.discard(name)
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _try_head(base: Base, task: HeadTask, spec: AnyHeadSpec, delta: Delta, found: Findings) -> None:
    """Let the head answer one input over hidden states of zeros.

    What it lacks or leaves aside shows at once, without a word here on what each kind needs.
    """
    labels, tensors = delta.manifest.labels or (), _Noted(delta.head)
    head = Head(spec, tensors, labels)
    wanted = _SCORES.get(spec.kind, len(labels))
    try:
        examples = _encode(base, task, delta)
        batch = collate(examples, pad_id=base.text.pad_id, device=torch.device("cpu"))
        states = torch.zeros(*batch.mask.shape, base.hidden_size)  # (B, T, D)
        scores = task.logits(head, task.features(spec, states, batch))  # (F, C)
        if scores.dim() != 2 or scores.shape[1] != wanted:
            what = f"the head gives scores of shape {tuple(scores.shape)}, not {wanted} a feature"
            found.refuse("delta_corrupt", what, "head")
            return
        task.answer(head, examples, split_logits(task, scores, examples))
        found.refuse_all("delta_corrupt", "is not used", tensors.unread)
    except KeyError as error:
        found.refuse("delta_corrupt", f"the head has no tensor {error}", "head")
    except (EngineError, RuntimeError, IndexError, ValueError):
        found.refuse("delta_corrupt", "the head cannot answer: its tensors do not fit", "head")


def _encode(base: Base, task: HeadTask, delta: Delta) -> list[Example]:
    """One input that the head takes; refused as the last of them was when it takes none."""
    first, *others = _INPUTS[task.kind]
    spec = delta.manifest.head
    for value in others:
        with suppress(RowError):
            return task.encode_input(base, value, max_length=base.max_length, spec=spec)
    return task.encode_input(base, first, max_length=base.max_length, spec=spec)
