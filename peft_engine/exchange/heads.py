"""Heads that transformers has a class for, under the names that its classes give them.

A head of ours is exchanged only where such a class computes the same function of the same hidden
states. Labels are not part of it: no file of PEFT has a place for them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.configs.manifest import (
    AnyHeadSpec,
    HeadSpec,
    HiddenActivation,
    SpanHeadSpec,
    TagHeadSpec,
    ValueHeadSpec,
)
from peft_engine.exchange.findings import Findings
from peft_engine.exchange.places import export_prefix

# Legend of axes: C classes, D width, H width of a hidden layer.

TaskType = Literal["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"]


@dataclass(frozen=True)
class Layout:
    """Where a class of transformers keeps its head.

    Attributes:
        last: Module of the last linear.
        pooling: What the head reads of a row; None where it reads every token.
        has_bias: Whether the last linear has a bias.
        hidden: Module of the linear before it, if there is one.
        activation: What stands between the two.
        hidden_in_trunk: Whether that linear is a part of the base (BERT's pooler).
    """

    last: str
    pooling: Literal["cls", "last"] | None = None
    has_bias: bool = True
    hidden: str | None = None
    activation: HiddenActivation | None = None
    hidden_in_trunk: bool = False


@dataclass(frozen=True)
class ReadHead:
    """A head that was found in a file.

    Attributes:
        task: Name of the task that it answers.
        spec: Its specification.
        tensors: By short name.
        labels: Names of its classes; None for a task without.
    """

    task: str
    spec: AnyHeadSpec
    tensors: Mapping[str, Tensor]
    labels: tuple[str, ...] | None


@dataclass
class WrittenHead:
    """A head in the names of transformers.

    Attributes:
        task_type: As PEFT calls the task.
        tensors: By name in the model.
        modules: Modules that PEFT must save.
    """

    task_type: TaskType
    tensors: dict[str, Tensor] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)


_BERT = Layout("classifier", "cls", hidden="pooler.dense", activation="tanh", hidden_in_trunk=True)
_ROBERTA = Layout("classifier.out_proj", "cls", hidden="classifier.dense", activation="tanh")
_ELECTRA = Layout("classifier.out_proj", "cls", hidden="classifier.dense", activation="gelu")
_DISTILBERT = Layout("classifier", "cls", hidden="pre_classifier", activation="relu")
_DECODER = Layout("score", "last", has_bias=False)
_ROBERTAS = ("roberta", "xlm-roberta", "camembert", "mpnet")
_LLAMAS = ("llama", "mistral", "qwen2", "qwen3", "gemma")

_SEQUENCE: Mapping[str, Layout] = MappingProxyType(
    {"bert": _BERT, "electra": _ELECTRA, "distilbert": _DISTILBERT, "gpt2": _DECODER}
    | dict.fromkeys(_ROBERTAS, _ROBERTA)
    | dict.fromkeys(_LLAMAS, _DECODER)
)
_ENCODERS = ("bert", "electra", "distilbert", *_ROBERTAS)
_TOKEN: Mapping[str, Layout] = MappingProxyType(
    dict.fromkeys((*_ENCODERS, "gpt2"), Layout("classifier"))
    | dict.fromkeys(_LLAMAS, Layout("score"))
)
_SPAN: Mapping[str, Layout] = MappingProxyType(dict.fromkeys(_ENCODERS, Layout("qa_outputs")))

LAYOUTS: Mapping[TaskType, Mapping[str, Layout]] = MappingProxyType(
    {"SEQ_CLS": _SEQUENCE, "TOKEN_CLS": _TOKEN, "QUESTION_ANS": _SPAN}
)
"""By task and model type."""


_OWN_FEATURES: Mapping[str, str] = MappingProxyType(
    {
        "spelling": "the head reads how words are written",
        "words": "the head knows words by heart",
        "transitions": "tags are decided together",
        "outside_penalty": "O counts less than it scores",
        "threshold": "labels are given from another probability than one half on",
    }
)
"""Fields of our heads that no other format has, and what they mean."""


@dataclass(frozen=True)
class HeadWishes:
    """What a file does not say of its head, and the user may.

    Attributes:
        labels: Names of the classes in their order; None: ``LABEL_0``, …
        multi_label: Whether a text may have any number of labels.
    """

    labels: tuple[str, ...] | None = None
    multi_label: bool = False


def read_head(
    base: Base, task_type: TaskType, tensors: dict[str, Tensor], wishes: HeadWishes, found: Findings
) -> ReadHead | None:
    """Build a head from the tensors of a file.

    Args:
        base: The base.
        task_type: As PEFT calls the task.
        tensors: Tensors by name without PEFT's own prefix; those that are used are taken out.
        wishes: What the file does not say.
        found: Told what is missing or does not fit.

    Returns:
        The head; None when there is none to be had.
    """
    layout = LAYOUTS[task_type].get(base.info.model_type)
    if layout is None:
        found.refuse(
            "unsupported_head",
            f"a {task_type} head of {base.info.model_type} models is not known here",
            "task_type",
        )
        return None
    prefix = export_prefix(base, has_head=True)
    width = base.hidden_size
    own: dict[str, Tensor] = {}
    if layout.hidden is not None:
        own |= _read_hidden(base, layout, prefix, tensors, found)
        width = len(own["hidden_bias"]) if "hidden_bias" in own else width
    weight = tensors.pop(f"{layout.last}.weight", None)
    if weight is None:
        found.refuse("missing_tensor", "the head has no such tensor", f"{layout.last}.weight")
        return None
    if weight.dim() != 2 or weight.shape[1] != width:
        shape = tuple(weight.shape)
        found.refuse("wrong_shape", f"{shape} is not (classes, {width})", f"{layout.last}.weight")
        return None
    bias = tensors.pop(f"{layout.last}.bias", None)
    if bias is None and layout.has_bias:
        found.refuse("missing_tensor", "the head has no such tensor", f"{layout.last}.bias")
    own |= {"weight": weight, "bias": torch.zeros(len(weight)) if bias is None else bias}
    if own["bias"].shape != (len(weight),):
        found.refuse("wrong_shape", f"is not ({len(weight)},)", f"{layout.last}.bias")
    return _specify(base, task_type, layout, own, wishes, found)


def _read_hidden(
    base: Base, layout: Layout, prefix: str, tensors: dict[str, Tensor], found: Findings
) -> dict[str, Tensor]:
    own: dict[str, Tensor] = {}
    stem = f"{prefix}{layout.hidden}" if layout.hidden_in_trunk else f"{layout.hidden}"
    for name in ("weight", "bias"):
        tensor = tensors.pop(f"{stem}.{name}", None)
        if tensor is None and layout.hidden_in_trunk:
            tensor = _stored_in_base(base, f"{layout.hidden}.{name}")
        if tensor is None:
            found.refuse(
                "missing_tensor",
                "the head reads the output of this layer, which is neither in the file nor in the "
                "base; save it with modules_to_save",
                f"{stem}.{name}",
            )
            continue
        own[f"hidden_{name}"] = tensor
    weight, bias = own.get("hidden_weight"), own.get("hidden_bias")
    fits = weight is None or bias is None or tuple(weight.shape) == (len(bias), base.hidden_size)
    if not fits:
        found.refuse("wrong_shape", f"does not read {base.hidden_size} features", f"{stem}.weight")
    return own


def _stored_in_base(base: Base, name: str) -> Tensor | None:
    """A layer that came with the base; one that transformers had to draw at random is no part."""
    for path in base.info.directory.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  no mapping
                if key == name or key.endswith(f".{name}"):
                    stored: Tensor = file.get_tensor(key).float()
                    return stored
    return None


def _specify(
    base: Base,
    task_type: TaskType,
    layout: Layout,
    own: dict[str, Tensor],
    wishes: HeadWishes,
    found: Findings,
) -> ReadHead | None:
    classes = len(own["weight"])
    if task_type == "QUESTION_ANS":
        if classes != 2:
            found.refuse("wrong_shape", f"has {classes} outputs, not start and end", layout.last)
        return ReadHead("question-answering", SpanHeadSpec(scale=1.0, abstains=False), own, None)
    if task_type == "SEQ_CLS" and classes == 1 and not wishes.multi_label:
        return _read_value(layout, own, found)
    labels = check_labels(wishes.labels, classes, found)
    if task_type == "TOKEN_CLS":
        if wishes.labels is None or not are_tags(labels):
            found.refuse(
                "labels_needed",
                "tags must be given in their order, `O` among them, the others `B-…` or `I-…`",
                "labels",
            )
        token: Literal["first", "last"] = "last" if base.architecture == "causal" else "first"
        found.note(f"the {token} token of a word speaks for it; the file does not say which")
        return ReadHead("token-classification", TagHeadSpec(token=token, scale=1.0), own, labels)
    spec = HeadSpec(
        kind="multi-label" if wishes.multi_label else "linear",
        pooling=layout.pooling or "cls",
        normalize=False,
        scale=1.0,
        hidden=layout.activation,
    )
    return ReadHead("text-classification", spec, own, labels)


def _read_value(layout: Layout, own: dict[str, Tensor], found: Findings) -> ReadHead | None:
    if layout.hidden is not None:
        found.refuse("unsupported_head", "a regression head with a hidden layer", layout.last)
        return None
    spec = ValueHeadSpec(
        pooling=layout.pooling or "cls",
        reading="joined",
        normalize=False,
        center=0.0,
        spread=1.0,
    )
    return ReadHead("regression", spec, own, None)


def check_labels(labels: tuple[str, ...] | None, classes: int, found: Findings) -> tuple[str, ...]:
    """Names of classes.

    Args:
        labels: As given; None: transformers' own placeholders.
        classes: How many the head has.
        found: Told when the names do not fit.

    Returns:
        As many names as there are classes.
    """
    placeholders = tuple(f"LABEL_{number}" for number in range(classes))
    if labels is None:
        found.note(f"the file names no labels; they are called {placeholders[0]} and so on")
        return placeholders
    if len(labels) != classes or len(set(labels)) != classes or not all(labels):
        found.refuse(
            "wrong_labels", f"{len(labels)} labels for a head of {classes} different ones", "labels"
        )
        return placeholders
    return labels


def are_tags(labels: tuple[str, ...]) -> bool:
    """Whether labels are tags of words.

    Args:
        labels: The labels.

    Returns:
        True for ``O`` with any of ``B-…`` and ``I-…``.
    """
    return "O" in labels and all(label == "O" or label[:2] in ("B-", "I-") for label in labels)


def write_head(
    base: Base, spec: AnyHeadSpec, tensors: Mapping[str, Tensor], found: Findings
) -> WrittenHead | None:
    """Name a head as transformers does.

    Args:
        base: The base.
        spec: Specification of the head.
        tensors: Its tensors by short name.
        found: Told what transformers has no place for.

    Returns:
        The head; None where there is no place for it.
    """
    task_type = _task_type_of(spec)
    layout = None if task_type is None else LAYOUTS[task_type].get(base.info.model_type)
    if task_type is None or layout is None:
        found.refuse(
            "head_not_possible",
            f"transformers has no class with a head of the kind {spec.kind!r} for "
            f"{base.info.model_type} models",
            "head",
        )
        return None
    _refuse_other_function(spec, layout, found)
    folded = _fold(spec, tensors)
    if not layout.has_bias and bool(folded["bias"].any()):
        found.refuse("head_not_possible", "transformers gives this head no bias", "head:bias")
    written = WrittenHead(task_type)
    written.tensors[f"{layout.last}.weight"] = folded["weight"]
    if layout.has_bias:
        written.tensors[f"{layout.last}.bias"] = folded["bias"]
    written.modules = [layout.last.partition(".")[0]]
    if layout.hidden is not None and "hidden_weight" in folded:
        stem = layout.hidden
        if layout.hidden_in_trunk:
            stem = f"{export_prefix(base, has_head=True)}{stem}"
        written.tensors |= {f"{stem}.{n}": folded[f"hidden_{n}"] for n in ("weight", "bias")}
        own = layout.hidden.partition(".")[0]
        written.modules += [own] if own not in written.modules else []
    return written


def _task_type_of(spec: AnyHeadSpec) -> TaskType | None:
    if isinstance(spec, HeadSpec | ValueHeadSpec):
        return "SEQ_CLS"
    if isinstance(spec, TagHeadSpec):
        return "TOKEN_CLS"
    return "QUESTION_ANS" if isinstance(spec, SpanHeadSpec) else None


def refuse_own_features(spec: AnyHeadSpec, found: Findings) -> None:
    """Refuse what only our own heads know.

    Args:
        spec: Of any head.
        found: Told of each.
    """
    for name, reason in _OWN_FEATURES.items():
        if getattr(spec, name, None):
            found.refuse("head_not_possible", reason, f"head.{name}")


def _refuse_other_function(spec: AnyHeadSpec, layout: Layout, found: Findings) -> None:
    pooling = getattr(spec, "pooling", None)
    if pooling != layout.pooling:
        found.refuse(
            "head_not_possible",
            f"the head reads the pooling {pooling!r}, and transformers has a head over "
            f"{layout.pooling!r} only",
            "head.pooling",
        )
    if getattr(spec, "normalize", False):
        found.refuse(
            "head_not_possible",
            "features are scaled to unit length before the head, which transformers does not do",
            "head.normalize",
        )
    if getattr(spec, "hidden", None) != layout.activation:
        found.refuse(
            "head_not_possible",
            f"transformers has a layer with {layout.activation or 'nothing'} before the last one, "
            f"this head has {getattr(spec, 'hidden', None) or 'none'}",
            "head.hidden",
        )
    refuse_own_features(spec, found)
    if getattr(spec, "reading", "joined") != "joined":
        found.refuse("head_not_possible", "both texts of a pair are read apart", "head.reading")


def _fold(spec: AnyHeadSpec, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head with all its factors inside its weights."""
    own = {name: tensor.float().cpu() for name, tensor in tensors.items()}
    first = "hidden_weight" if "hidden_weight" in own else "weight"
    own[first] = own[first] * getattr(spec, "scale", 1.0)
    if isinstance(spec, ValueHeadSpec):
        own["weight"] = own["weight"] * spec.spread
        own["bias"] = own["bias"] * spec.spread + spec.center
    return own
