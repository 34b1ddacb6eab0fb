"""From a delta to a folder that HF PEFT loads, or to every reason why PEFT cannot hold it."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.configs.methods import (
    BitfitConfig,
    LoraConfig,
    MaskConfig,
    MethodConfig,
    PrefixConfig,
)
from peft_engine.delta import Delta
from peft_engine.exchange.findings import Findings
from peft_engine.exchange.folder import write_folder
from peft_engine.exchange.heads import WrittenHead, write_head
from peft_engine.exchange.peft_lora import write_lora, write_portable
from peft_engine.exchange.peft_prefix import write_prefix
from peft_engine.exchange.peft_shira import write_shira
from peft_engine.exchange.peft_vectors import write_beft, write_biases, write_ia3, write_norms
from peft_engine.exchange.places import export_prefix
from peft_engine.exchange.sidecar import SIDECAR_FILE, describe
from peft_engine.methods.table import METHODS
from peft_engine.parts.sites import bias_of
from peft_engine.parts.stacks import part_read

PEFT_VERSION = "0.21.2"
"""The version that these files were compared with."""

_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "lora": "LORA",
        "mask": "SHIRA",
        "prefix": "PREFIX_TUNING",
        "ia3": "IA3",
        "norm": "LN_TUNING",
    }
)

_Sites = Mapping[str, Mapping[str, Tensor]]
_Written = tuple[str, dict[str, Any], dict[str, Tensor]]


def write_peft(base: Base, delta: Delta, folder: Path, found: Findings, *, portable: bool) -> None:
    """Write a delta as a folder of PEFT.

    Args:
        base: The base of the delta.
        delta: The delta, on the CPU.
        folder: An existing folder.
        found: Told what PEFT cannot hold; nothing is written then.
        portable: One rank, no patterns, every layer: what vLLM and LoRAX read too.
    """
    manifest = delta.manifest
    head = None
    if manifest.head is not None:
        head = write_head(base, manifest.head, delta.head, found)
        if portable:
            found.refuse(
                "head_not_possible",
                "vLLM and LoRAX read low-rank matrices alone; use peft",
                "head",
            )
    written = _write_methods(base, delta, found, portable=portable)
    if found.problems or written is None:
        return
    kind, options, tensors = written
    config = {
        "peft_type": kind,
        "peft_version": PEFT_VERSION,
        "base_model_name_or_path": manifest.base_model,
        "inference_mode": True,
        "task_type": _task_type(base, head),
        **options,
    }
    if head is not None:
        _add_head(kind, head, config, tensors)
    write_folder(
        folder,
        configs={"adapter_config.json": config, SIDECAR_FILE: describe(delta)},
        tensors={"adapter_model.safetensors": tensors},
    )


def _add_head(
    kind: str, head: WrittenHead, config: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    config["modules_to_save"] = sorted(head.modules)
    prefix = "base_model." if kind == "PREFIX_TUNING" else "base_model.model."
    tensors |= {f"{prefix}{name}": tensor for name, tensor in head.tensors.items()}


def _task_type(base: Base, head: WrittenHead | None) -> str:
    if head is not None:
        return head.task_type
    return {
        "causal": "CAUSAL_LM",
        "encoder-decoder": "SEQ_2_SEQ_LM",
        "encoder": "FEATURE_EXTRACTION",
    }[base.architecture]


def _write_methods(base: Base, delta: Delta, found: Findings, *, portable: bool) -> _Written | None:
    sites: dict[str, dict[str, Mapping[str, Tensor]]] = {}
    for path, methods in delta.at_sites().items():
        for name, own in methods.items():
            sites.setdefault(name, {})[path] = own
    configs: dict[str, MethodConfig] = {own.type: own for own in delta.manifest.methods}
    if configs.keys() == {"lora", "bitfit"} and not portable:
        return _write_with_biases(base, delta, configs, sites, found)
    if len(configs) > 1:
        found.refuse(
            "method_not_possible",
            f"PEFT holds one method in a file, this delta has {', '.join(configs)}",
            "methods",
        )
        return None
    (config,) = configs.values()
    if portable and config.type != "lora":
        found.refuse("method_not_possible", "only a LoRA is portable", config.type)
        return None
    return _write_one(base, delta, config, sites.get(config.type, {}), found, portable=portable)


def _write_one(
    base: Base,
    delta: Delta,
    config: MethodConfig,
    sites: _Sites,
    found: Findings,
    *,
    portable: bool,
) -> _Written | None:
    has_head = delta.manifest.head is not None
    trunk, prefix = part_read(base.trunk, has_head=has_head), export_prefix(base, has_head=has_head)
    if isinstance(config, BitfitConfig):
        return _write_bitfit(base, delta, config, sites, found)
    kind = _KINDS.get(config.type)
    if kind is None:
        found.refuse("method_not_possible", "PEFT has no such method", config.type)
        return None
    if portable and isinstance(config, LoraConfig):
        if config.dora:
            found.refuse("method_not_possible", "vLLM and LoRAX know no DoRA", "lora.dora")
        kinds = base.architecture == "causal"
        written = write_portable(trunk, config, sites, prefix, names_kinds=kinds)
    elif isinstance(config, LoraConfig):
        written = write_lora(trunk, config, sites, prefix)
    elif isinstance(config, MaskConfig):
        written = write_shira(trunk, config, sites, prefix, found)
    elif isinstance(config, PrefixConfig):
        written = write_prefix(base, config, sites, found)
    else:
        write = write_ia3 if config.type == "ia3" else write_norms
        written = write(trunk, sites, prefix)
    return kind, *written


def _write_bitfit(
    base: Base, delta: Delta, config: BitfitConfig, sites: _Sites, found: Findings
) -> _Written | None:
    """New biases of linears as BEFT; those of norms only beside a LoRA that does nothing."""
    has_head = delta.manifest.head is not None
    trunk, prefix = part_read(base.trunk, has_head=has_head), export_prefix(base, has_head=has_head)
    kinds = {site.path: site.kind for site in METHODS["bitfit"].sites(trunk, config)}
    changed = {path: own for path, own in sites.items() if bool(own["bias"].any())}
    linears = all(kinds[path] == "linear" for path in changed)
    if linears and all(type(trunk.get_submodule(p)).__name__ == "Linear" for p in changed):
        return "BEFT", *write_beft(changed or dict(list(sites.items())[:1]), prefix)
    path = next(path for path, kind in kinds.items() if kind == "linear")
    module = trunk.get_submodule(path)
    site = next(s for s in METHODS["bitfit"].sites(trunk, config) if s.path == path)
    inputs = module.weight.numel() // site.out_features  # type: ignore[operator]
    lora = LoraConfig(r=1, alpha=1, targets=(path,))
    nothing = {path: {"A": _zeros(1, inputs), "B": _zeros(site.out_features, 1)}}
    sites_of = {"lora": nothing, "bitfit": sites}
    return _write_with_biases(base, delta, {"lora": lora, "bitfit": config}, sites_of, found)


def _write_with_biases(
    base: Base,
    delta: Delta,
    configs: Mapping[str, MethodConfig],
    sites: Mapping[str, _Sites],
    found: Findings,
) -> _Written | None:
    has_head = delta.manifest.head is not None
    trunk, prefix = part_read(base.trunk, has_head=has_head), export_prefix(base, has_head=has_head)
    new = [
        path
        for path, own in sites["bitfit"].items()
        if bias_of(trunk.get_submodule(path)) is None and bool(own["bias"].any())
    ]
    found.refuse_all("site_not_possible", "has no bias in the base, and PEFT adds none", new)
    lora = configs["lora"]
    if not isinstance(lora, LoraConfig) or found.problems:
        return None
    options, tensors = write_lora(trunk, lora, sites["lora"], prefix)
    tensors |= write_biases(trunk, sites["bitfit"], prefix, sites["lora"])
    return "LORA", options | {"bias": "all"}, tensors


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape)
