"""From a folder of AdapterHub to methods, tensors and a head; as strict as for PEFT."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.configs.methods import BottleneckConfig, Ia3Config
from peft_engine.configs.methods.options import LayerChoice
from peft_engine.exchange.findings import Findings
from peft_engine.exchange.folder import read_tensors
from peft_engine.exchange.heads import HeadWishes
from peft_engine.exchange.hub_heads import read_hub_head
from peft_engine.exchange.hub_names import (
    NAMES,
    TENSOR_FILES,
    Names,
    find_variant,
    refuse_lora_options,
)
from peft_engine.exchange.part import Part
from peft_engine.exchange.peft_import import ReadAdapter
from peft_engine.exchange.peft_lora import configure
from peft_engine.exchange.places import module_prefixes
from peft_engine.methods.table import METHODS
from peft_engine.parts.anatomy import attention_ends
from peft_engine.parts.sites import Site, count_layers, layer_of, linear_sites

_FAULTY_SCALING_BEFORE = (1, 1)
"""Earlier versions trained a LoRA at scale 1, whatever alpha said (adapters, pull request 770)."""

_LEGACY = ("attention_text_task_adapters", "layer_text_task_adapters")
"""Holders of adapters in files of adapter-transformers 1."""

_DOWN, _UP = "adapter_down.0", "adapter_up"


def read_hub(
    base: Base, folder: Path, config: Mapping[str, Any], wishes: HeadWishes, found: Findings
) -> ReadAdapter | None:
    """Read a folder of AdapterHub.

    Args:
        base: The base that it was trained on.
        folder: The folder.
        config: Its configuration.
        wishes: What the files do not say of the head.
        found: Told everything that cannot be held.

    Returns:
        The adapter; None when it cannot be told what it is.
    """
    names, own = NAMES.get(base.info.model_type), config.get("config")
    if not _fits(base, config, names, own, found) or names is None or not isinstance(own, dict):
        return None
    raw = read_tensors(folder, TENSOR_FILES, found)
    if found.problems:
        return None
    tensors = _without_prefix(base, raw, str(config.get("name")), found)
    architecture = own.get("architecture")
    try:
        if architecture is None:
            part = _read_bottleneck(base, names, own, tensors, found)
        elif architecture == "lora":
            refuse_lora_options(own, found)
            if found.problems:
                return None
            part = _read_lora(base, names, own, str(config.get("version", "")), tensors, found)
        else:
            found.refuse("unsupported_kind", f"is {architecture!r}", "architecture")
            return None
    except ValidationError as error:
        for one in error.errors():
            found.refuse("unsupported_option", one["msg"], ".".join(map(str, one["loc"])))
        return None
    found.refuse_all("unused_tensor", "has no place in this adapter", tensors)
    head = read_hub_head(base, folder, wishes, found)
    return ReadAdapter(part, head, "" if head is None else head.task)


def _fits(
    base: Base, config: Mapping[str, Any], names: Names | None, own: Any, found: Findings
) -> bool:
    if names is None:
        found.refuse(
            "unsupported_kind",
            f"adapters of {base.info.model_type} models are not exchanged with AdapterHub; "
            f"those of {', '.join(NAMES)} are",
            "model_type",
        )
    if config.get("model_type") not in (None, base.info.model_type):
        told = config.get("model_type")
        found.refuse("another_base", f"is {told!r}, not {base.info.model_type!r}", "model_type")
    if config.get("hidden_size") not in (None, base.hidden_size):
        told = config.get("hidden_size")
        found.refuse("another_base", f"is {told!r}, not {base.hidden_size}", "hidden_size")
    if not isinstance(own, dict):
        found.refuse("bad_config", "holds no options", "config")
    return not found.problems


def _without_prefix(
    base: Base, raw: Mapping[str, Tensor], name: str, found: Findings
) -> dict[str, Tensor]:
    """Names from the trunk on, without the adapter's own name."""
    tensors: dict[str, Tensor] = {}
    for key, tensor in raw.items():
        known = key
        for legacy in _LEGACY:
            known = known.replace(f".{legacy}.", ".adapters.")
        plain = re.sub(rf"\.(adapters|loras)\.{re.escape(name)}\.", r".\1.", known)
        if plain == known:
            found.refuse("unused_tensor", f"does not belong to the adapter {name!r}", key)
            continue
        for prefix in module_prefixes(base):
            if prefix and plain.startswith(prefix):
                plain = plain.removeprefix(prefix)
                break
        tensors[plain] = tensor
    return tensors


def _layers(base: Base, config: Mapping[str, Any], found: Findings) -> tuple[LayerChoice, set[int]]:
    depth = max(count_layers(base.trunk).values(), default=0)
    out = config.get("leave_out") or []
    if not isinstance(out, list) or not all(isinstance(n, int) and 0 <= n < depth for n in out):
        found.refuse("unsupported_option", f"is {out!r}; there are {depth} layers", "leave_out")
        return "all", set()
    kept = set(range(depth)) - set(out)
    if not kept:
        found.refuse("unsupported_option", "leaves every layer out", "leave_out")
    return tuple(sorted(kept)) if out else "all", kept


def _read_bottleneck(
    base: Base,
    names: Names,
    config: Mapping[str, Any],
    tensors: dict[str, Tensor],
    found: Findings,
) -> Part:
    variant = find_variant(config, found)
    layers, _ = _layers(base, config, found)
    downs = [t for name, t in tensors.items() if name.endswith(f"{_DOWN}.weight")]
    widths = {len(tensor) for tensor in downs}
    if len(widths) != 1:
        found.refuse("wrong_shape", f"bottlenecks of {sorted(widths) or 'no'} features", _DOWN)
    if variant is None or found.problems:
        return Part()
    scaling = config.get("scaling", 1.0)
    if scaling != "learned" and not isinstance(scaling, int | float):
        found.refuse("bad_config", "is neither a number nor 'learned'", "scaling")
        return Part()
    method = BottleneckConfig.model_validate(
        {
            "variant": variant,
            "size": widths.pop(),
            "activation": config.get("non_linearity", "relu"),
            "scaling": scaling,
            "layers": layers,
        }
    )
    part = Part([method])
    for site, holder in holders(base, names, method):
        shapes = METHODS["bottleneck"].shapes(site, method)
        sources = {"down": f"{_DOWN}.weight", "down_bias": f"{_DOWN}.bias"}
        sources |= {"up": f"{_UP}.weight", "up_bias": f"{_UP}.bias", "scale": "scaling"}
        for short, shape in shapes.items():
            tensor = _take(tensors, f"{holder}.{sources[short]}", shape, found)
            if tensor is not None:
                part.put(site.path, "bottleneck", **{short: tensor})
    return part


def _take(
    tensors: dict[str, Tensor], name: str, shape: tuple[int | None, ...], found: Findings
) -> Tensor | None:
    """Take one tensor out of the file's, or tell why there is none to be had."""
    tensor = tensors.pop(name, None)
    if tensor is None:
        found.refuse("missing_tensor", "is not in the file", name)
        return None
    if tuple(tensor.shape) != shape:
        found.refuse("wrong_shape", f"{tuple(tensor.shape)} is not {shape}", name)
        return None
    return tensor


def holders(base: Base, names: Names, config: BottleneckConfig) -> list[tuple[Site, str]]:
    """Sites of a bottleneck, each with the name of the module that AdapterHub keeps it in.

    Args:
        base: The base.
        names: Names of its family.
        config: The method.

    Returns:
        In the order of the method's sites.
    """
    attention = {end.output.path for end in attention_ends(base.trunk)}
    return [
        (site, (names.attention if site.path in attention else names.ffn).format(site.layer))
        for site in METHODS["bottleneck"].sites(base.trunk, config)
    ]


def _read_lora(
    base: Base,
    names: Names,
    config: Mapping[str, Any],
    version: str,
    tensors: dict[str, Tensor],
    found: Findings,
) -> Part:
    kinds = lora_kinds(config)
    _, kept = _layers(base, config, found)
    sites = [
        site
        for site in linear_sites(base.trunk)
        if layer_of(site.path) in kept and kind_of(site.path, names) in kinds
    ]
    if config.get("composition_mode") == "scale":
        return _read_scales(base, names, sites, tensors, found)
    if config.get("composition_mode", "add") != "add":
        found.refuse("unsupported_option", "is neither add nor scale", "composition_mode")
    part, rank, alpha = Part(), config.get("r"), config.get("alpha")
    if _is_faulty(version) and rank != alpha:
        found.note(f"{version} trained at scale 1 whatever alpha said; alpha is read as {rank}")
        alpha = rank
    for site in sites:
        pair = {}
        for short, shape in (("A", (rank, site.in_features)), ("B", (site.out_features, rank))):
            tensor = _take(tensors, f"{site.path}.loras.lora_{short}", shape, found)
            if tensor is not None:
                pair[short] = tensor
        part.put(site.path, "lora", **pair)
    if found.problems or not isinstance(rank, int) or not isinstance(alpha, int | float):
        found.refuse("unsupported_option", f"r is {rank!r} and alpha {alpha!r}", "r")
        return part
    if not sites:
        found.refuse("missing_tensor", "no linear of the base is named", "attn_matrices")
        return part
    ranks = {site.path: rank for site in sites}
    alphas = {site.path: float(alpha) for site in sites}
    paths = [site.path for site in linear_sites(base.trunk)]
    dropout = float(config.get("dropout") or 0.0)
    part.methods.append(configure(part, ranks, alphas, paths, dropout=dropout))
    return part


def lora_kinds(config: Mapping[str, Any]) -> set[str]:
    """Linears that a LoRA of AdapterHub acts on.

    Args:
        config: Its options.

    Returns:
        Keys of ``Names.linears``.
    """
    kinds = set(config.get("attn_matrices") or ()) if config.get("selfattn_lora", True) else set()
    kinds |= {"intermediate"} if config.get("intermediate_lora") else set()
    return kinds | ({"output"} if config.get("output_lora") else set())


def kind_of(path: str, names: Names) -> str | None:
    """What AdapterHub's LoRA calls a linear.

    Args:
        path: Its path in the trunk.
        names: Names of the family.

    Returns:
        A key of ``Names.linears``; None for one that it has no word for.
    """
    inside = re.sub(r"^.*?\.\d+\.", "", path)
    return next((kind for kind, ending in names.linears.items() if inside == ending), None)


def _is_faulty(version: str) -> bool:
    numbers = re.match(r"adapters\.(\d+)\.(\d+)", version)
    return numbers is not None and tuple(map(int, numbers.groups())) < _FAULTY_SCALING_BEFORE


def _read_scales(
    base: Base, names: Names, sites: Sequence[Site], tensors: dict[str, Tensor], found: Findings
) -> Part:
    """(IA)³ of AdapterHub, whose factor of the FFN stands before the activation and not behind."""
    part = Part([Ia3Config()])
    ours = {site.path: site for site in METHODS["ia3"].sites(base.trunk, Ia3Config())}
    for path, site in ours.items():
        side = "in" if site.in_features else "out"
        part.put(path, "ia3", **{side: torch.ones(site.in_features or site.out_features)})
    for site in sites:
        name = f"{site.path}.loras.lora_B"
        tensor = tensors.pop(name, None)
        if tensor is None:
            found.refuse("missing_tensor", "is not in the file", name)
        elif kind_of(site.path, names) not in ("k", "v"):
            found.refuse(
                "unsupported_site",
                "AdapterHub scales the FFN before its activation, (IA)³ here behind it",
                site.path,
            )
        elif tuple(tensor.shape) != (site.out_features, 1):
            found.refuse("wrong_shape", f"{tuple(tensor.shape)}", name)
        else:
            part.put(site.path, "ia3", out=tensor.flatten())
    return part
