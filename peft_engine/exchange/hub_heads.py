"""Heads of AdapterHub: one or two layers over the first token or over every token, with labels."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.configs.manifest import AnyHeadSpec, HeadSpec, SpanHeadSpec, TagHeadSpec
from peft_engine.exchange.findings import Findings
from peft_engine.exchange.folder import read_json, read_tensors
from peft_engine.exchange.heads import (
    HeadWishes,
    ReadHead,
    are_tags,
    check_labels,
    refuse_own_features,
)
from peft_engine.exchange.hub_names import HEAD_CONFIG_FILE, HEAD_TENSOR_FILES

_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "classification": "linear",
        "multilabel_classification": "multi-label",
        "tagging": "tags",
        "question_answering": "span",
    }
)
_FIRST, _SECOND = 1, 4
"""Places of the linears in a Sequential of dropout, linear, activation, dropout, linear."""

_SPEAKER: Literal["first"] = "first"
"""Which token speaks for its word: that of the examples of AdapterHub's documents."""

_ACTIVATIONS = ("tanh", "relu", "gelu")


def read_hub_head(base: Base, folder: Path, wishes: HeadWishes, found: Findings) -> ReadHead | None:
    """Read the head of a folder.

    Args:
        base: The base.
        folder: The folder of the adapter.
        wishes: Labels that go before those of the file.
        found: Told what does not fit.

    Returns:
        The head; None where there is none to be had.
    """
    if not (folder / HEAD_CONFIG_FILE).is_file():
        found.refuse("missing_file", "without a head an encoder answers nothing", HEAD_CONFIG_FILE)
        return None
    stated = read_json(folder / HEAD_CONFIG_FILE, found)
    raw = read_tensors(folder, HEAD_TENSOR_FILES, found)
    config = stated.get("config")
    kind = _KINDS.get(str(config.get("head_type"))) if isinstance(config, dict) else None
    if not isinstance(config, dict) or kind is None:
        told = config.get("head_type") if isinstance(config, dict) else None
        found.refuse(
            "unsupported_head", f"is {told!r}; {', '.join(_KINDS)} can be held", "head_type"
        )
        return None
    prefix = f"heads.{stated.get('name')}."
    tensors = {n.removeprefix(prefix): t for n, t in raw.items() if n.startswith(prefix)}
    found.refuse_all(
        "unused_tensor", f"is not of {prefix}", raw.keys() - {prefix + n for n in tensors}
    )
    own = _read_layers(base, config, tensors, found)
    found.refuse_all("unused_tensor", "has no place in this head", tensors)
    if own is None or found.problems:
        return None
    labels = wishes.labels or _labels_of(config)
    return _specify(kind, config, own, labels, found)


def _read_layers(
    base: Base, config: Mapping[str, Any], tensors: dict[str, Tensor], found: Findings
) -> dict[str, Tensor] | None:
    layers = config.get("layers")
    if config.get("use_pooler"):
        found.refuse("unsupported_head", "reads the pooler of the base", "use_pooler")
    if layers not in (1, 2):
        found.refuse("unsupported_head", f"has {layers!r} layers, not one or two", "layers")
        return None
    width = base.hidden_size
    own: dict[str, Tensor] = {}
    places = {"hidden_": _FIRST, "": _SECOND} if layers == 2 else {"": _FIRST}
    for short, place in places.items():
        weight, bias = tensors.pop(f"{place}.weight", None), tensors.pop(f"{place}.bias", None)
        if weight is None or weight.dim() != 2 or weight.shape[1] != width:
            found.refuse("missing_tensor", f"no matrix over {width} features", f"{place}.weight")
            return None
        bias = torch.zeros(len(weight)) if bias is None else bias
        if bias.shape != (len(weight),):
            found.refuse("wrong_shape", f"{tuple(bias.shape)}", f"{place}.bias")
        own |= {f"{short}weight": weight, f"{short}bias": bias}
        width = len(weight)
    if layers == 2 and config.get("activation_function") not in _ACTIVATIONS:
        told = config.get("activation_function")
        found.refuse("unsupported_head", f"is {told!r}", "activation_function")
    return own


def _labels_of(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    numbers = config.get("label2id")
    if not isinstance(numbers, dict) or not all(isinstance(n, int) for n in numbers.values()):
        return None
    return tuple(sorted(map(str, numbers), key=numbers.__getitem__))


def _specify(
    kind: str,
    config: Mapping[str, Any],
    own: dict[str, Tensor],
    labels: tuple[str, ...] | None,
    found: Findings,
) -> ReadHead | None:
    if kind in ("tags", "span") and "hidden_weight" in own:
        found.refuse("unsupported_head", "has a hidden layer over every token", "layers")
        return None
    if kind == "span":
        if len(own["weight"]) != 2:
            found.refuse("wrong_shape", f"has {len(own['weight'])} outputs", "head")
        return ReadHead("question-answering", SpanHeadSpec(scale=1.0, abstains=False), own, None)
    names = check_labels(labels, len(own["weight"]), found)
    if kind == "tags":
        if not are_tags(names):
            message = "tags must be `O`, `B-…` and `I-…`; give them in the order of the head"
            found.refuse("labels_needed", message, "labels")
        return ReadHead("token-classification", TagHeadSpec(token=_SPEAKER, scale=1.0), own, names)
    spec = HeadSpec(
        kind="multi-label" if kind == "multi-label" else "linear",
        pooling="cls",
        normalize=False,
        scale=1.0,
        hidden=config.get("activation_function") if "hidden_weight" in own else None,
    )
    return ReadHead("text-classification", spec, own, names)


def write_hub_head(
    spec: AnyHeadSpec,
    tensors: Mapping[str, Tensor],
    labels: tuple[str, ...] | None,
    name: str,
    found: Findings,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A head in the files of AdapterHub.

    Args:
        spec: Specification of the head.
        tensors: Its tensors by short name.
        labels: Names of its classes.
        name: Name of the adapter.
        found: Told what AdapterHub has no place for.

    Returns:
        Its options, and its tensors by name.
    """
    own = {short: tensor.float().cpu() for short, tensor in tensors.items()}
    kind = next((hub for hub, kind in _KINDS.items() if kind == spec.kind), None)
    if kind is None or not isinstance(spec, HeadSpec | TagHeadSpec | SpanHeadSpec):
        found.refuse("head_not_possible", f"has no head of the kind {spec.kind!r}", "head")
        return {}, {}
    _refuse_other_function(spec, found)
    first = "hidden_weight" if "hidden_weight" in own else "weight"
    own[first] = own[first] * spec.scale
    hidden = spec.hidden if isinstance(spec, HeadSpec) else None
    places = {"hidden_": _FIRST, "": _SECOND} if hidden else {"": _FIRST}
    stem = f"heads.{name}"
    found_tensors = {
        f"{stem}.{place}.{part}": own[f"{short}{part}"]
        for short, place in places.items()
        for part in ("weight", "bias")
    }
    names = labels or ("start", "end")
    config = {
        "head_type": kind,
        "num_labels": len(own["weight"]),
        "layers": len(places),
        "activation_function": hidden or "tanh",
        "label2id": {label: number for number, label in enumerate(names)},
        "dropout_prob": None,
    }
    if isinstance(spec, HeadSpec):
        config |= {"use_pooler": False, "bias": True}
    return config, found_tensors


def _refuse_other_function(spec: HeadSpec | TagHeadSpec | SpanHeadSpec, found: Findings) -> None:
    if isinstance(spec, HeadSpec) and spec.pooling != "cls":
        found.refuse(
            "head_not_possible",
            f"the head reads the pooling {spec.pooling!r}, AdapterHub's the first token",
            "head.pooling",
        )
    if isinstance(spec, HeadSpec) and spec.normalize:
        found.refuse(
            "head_not_possible",
            "features are scaled to unit length before the head, which AdapterHub does not do",
            "head.normalize",
        )
    refuse_own_features(spec, found)
    if isinstance(spec, TagHeadSpec) and spec.token != _SPEAKER:
        found.refuse("head_not_possible", "the last token speaks for a word", "head.token")
