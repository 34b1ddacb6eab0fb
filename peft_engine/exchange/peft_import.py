"""From a folder of HF PEFT to methods, tensors and a head; strict in both directions.

Every tensor is used, every tensor that the configuration promises is there, and what would change
the function is refused: PEFT itself loads what fits and warns of the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from peft_engine.bases.base import Base
from peft_engine.exchange.findings import Findings
from peft_engine.exchange.folder import read_tensors
from peft_engine.exchange.heads import HeadWishes, ReadHead, TaskType, read_head
from peft_engine.exchange.part import Part, Placed
from peft_engine.exchange.peft_lora import read_lora
from peft_engine.exchange.peft_options import KINDS, is_targeted, refuse_options
from peft_engine.exchange.peft_prefix import EMBEDDINGS, read_prefix
from peft_engine.exchange.peft_shira import read_shira
from peft_engine.exchange.peft_vectors import read_beft, read_biases, read_ia3, read_norms
from peft_engine.exchange.places import export_prefix, locate, module_prefixes
from peft_engine.parts.sites import linear_sites
from peft_engine.parts.stacks import part_read

CONFIG_FILE = "adapter_config.json"
TENSOR_FILES = ("adapter_model.safetensors", "adapter_model.bin")

_HEAD_TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
_TEXT_TASKS = ("CAUSAL_LM", "SEQ_2_SEQ_LM")

_SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "LORA": ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector"),
    "IA3": ("ia3_l",),
    "LN_TUNING": ("ln_tuning_layers.weight", "ln_tuning_layers.bias"),
    "SHIRA": ("shira_weight", "shira_indices"),
    "BEFT": ("beft_bias",),
    "PREFIX_TUNING": (),
}
"""What a kind calls its tensors, behind the name of the module."""


@dataclass(frozen=True)
class ReadAdapter:
    """What a folder holds.

    Attributes:
        part: Methods and tensors.
        head: The head, if it has one.
        task: Name of the task.
    """

    part: Part
    head: ReadHead | None
    task: str


def read_peft(
    base: Base, folder: Path, config: Mapping[str, Any], wishes: HeadWishes, found: Findings
) -> ReadAdapter | None:
    """Read a folder of PEFT.

    Args:
        base: The base that it was trained on.
        folder: The folder.
        config: Its configuration.
        wishes: What the files do not say of the head.
        found: Told everything that cannot be held.

    Returns:
        The adapter; None when it cannot be told what it is.
    """
    kind, task_type = str(config.get("peft_type")), str(config.get("task_type") or "")
    if kind not in KINDS:
        known = ", ".join(KINDS)
        found.refuse("unsupported_kind", f"is {kind!r}; {known} can be held", "peft_type")
        return None
    refuse_options(config, kind, found)
    raw = read_tensors(folder, TENSOR_FILES, found)
    if found.problems:
        return None
    has_head = task_type in _HEAD_TASKS
    trunk = part_read(base.trunk, has_head=has_head)
    tensors = _without_prefix(raw, found)
    head = None
    if has_head:
        head = read_head(base, cast(TaskType, task_type), tensors, wishes, found)
    biases = _take_biases(base, tensors, config) if kind == "LORA" else {}
    embeddings = tensors.pop(EMBEDDINGS, None) if kind == "PREFIX_TUNING" else None
    placed = _place(base, kind, tensors, found)
    found.refuse_all("unused_tensor", "has no place in this adapter", tensors)
    _expect_targets(base, trunk, config, placed, found, has_head=has_head)
    try:
        part = _read_kind(base, trunk, config, placed, embeddings, found)
        if biases:
            more = read_biases(trunk, biases, found)
            part.methods += more.methods
            part.tensors |= more.tensors
    except ValidationError as error:
        for one in error.errors():
            found.refuse("unsupported_option", one["msg"], ".".join(map(str, one["loc"])))
        return None
    return ReadAdapter(part, head, _task_of(base, task_type, head, found))


def _without_prefix(raw: Mapping[str, Tensor], found: Findings) -> dict[str, Tensor]:
    """Names without what PEFT wraps around them, each once.

    Files of older versions, and LORA with ``bias="all"``, hold a module that is saved whole up to
    three times: as it is, as the trained copy and as the original, which computes nothing.
    """
    tensors: dict[str, Tensor] = {}
    for key in sorted(raw):
        name = key.removeprefix("base_model.").removeprefix("model.") if _wrapped(key) else key
        if ".original_module." in name:
            continue
        name = name.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".")
        if name.endswith(".lora_magnitude_vector.weight"):
            name = name.removesuffix(".weight")
        known = tensors.get(name)
        if known is not None and not torch.equal(known, raw[key]):
            found.refuse("unused_tensor", "stands twice in the file, with two values", key)
        tensors[name] = raw[key]
    return tensors


def _wrapped(key: str) -> bool:
    # Heads beside a prefix are `base_model.score.weight`, everything else has `.model.` too.
    return key.startswith("base_model.")


def _take_biases(
    base: Base, tensors: dict[str, Tensor], config: Mapping[str, Any]
) -> dict[str, Tensor]:
    if config.get("bias", "none") == "none":
        return {}
    biases: dict[str, Tensor] = {}
    for name in [name for name in tensors if name.endswith(".bias")]:
        path = locate(base, name.removesuffix(".bias").removesuffix(".base_layer"))
        if path is not None:
            biases[path] = tensors.pop(name)
    return biases


def _place(base: Base, kind: str, tensors: dict[str, Tensor], found: Findings) -> list[Placed]:
    """Take out what belongs to modules of the trunk."""
    modules: dict[str, dict[str, Tensor]] = {}
    for name in list(tensors):
        for suffix in _SUFFIXES[kind]:
            if name.endswith(f".{suffix}"):
                module = name.removesuffix(f".{suffix}")
                modules.setdefault(module, {})[suffix] = tensors.pop(name)
                break
    placed: dict[str, Placed] = {}
    for module, own in sorted(modules.items()):
        path = locate(base, module)
        if path is None:
            found.refuse("unsupported_site", "the base has no such module", module)
        elif path in placed:
            found.refuse("unused_tensor", f"means the same module as {placed[path].module}", module)
        else:
            placed[path] = Placed(path, module, own)
    return list(placed.values())


def _expect_targets(
    base: Base,
    trunk: nn.Module,
    config: Mapping[str, Any],
    placed: list[Placed],
    found: Findings,
    *,
    has_head: bool,
) -> None:
    """Refuse a file that lacks a module which its configuration targets."""
    targets = config.get("target_modules")
    if not targets:
        return
    there = {own.path for own in placed}
    prefix = _prefix_of(base, placed, has_head=has_head)
    for site in linear_sites(trunk):
        if site.path not in there and is_targeted(config, f"{prefix}{site.path}"):
            found.refuse("missing_tensor", "is a target module without tensors", site.path)


def _prefix_of(base: Base, placed: list[Placed], *, has_head: bool) -> str:
    for own in placed:
        for prefix in module_prefixes(base):
            if own.module == f"{prefix}{own.path}":
                return prefix
    return export_prefix(base, has_head=has_head)


def _read_kind(
    base: Base,
    trunk: nn.Module,
    config: Mapping[str, Any],
    placed: list[Placed],
    embeddings: Tensor | None,
    found: Findings,
) -> Part:
    kind = config["peft_type"]
    if kind == "PREFIX_TUNING":
        if embeddings is None:
            found.refuse("missing_tensor", "is not in the file", EMBEDDINGS)
            return Part()
        return read_prefix(base, embeddings, config, found)
    if not placed:
        found.refuse("missing_tensor", f"the file holds no tensor of the kind {kind}")
        return Part()
    if kind == "LORA":
        return read_lora(trunk, config, placed, found)
    if kind == "SHIRA":
        return read_shira(trunk, placed, found)
    readers = {"IA3": read_ia3, "LN_TUNING": read_norms, "BEFT": read_beft}
    return readers[kind](trunk, placed, found)


def _task_of(base: Base, task_type: str, head: ReadHead | None, found: Findings) -> str:
    if head is not None:
        return head.task
    if task_type in _HEAD_TASKS:
        return ""
    if not base.generates:
        found.refuse(
            "unsupported_task",
            f"is {task_type or 'nothing'}; without a head an encoder answers nothing",
            "task_type",
        )
    elif task_type and task_type not in _TEXT_TASKS:
        found.refuse("unsupported_task", f"is {task_type}", "task_type")
    return "text-generation"
