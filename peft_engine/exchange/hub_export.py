"""From a delta to a folder that AdapterHub loads (``load_adapter(…, use_safetensors=True)``)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.configs.methods import BottleneckConfig, LoraConfig
from peft_engine.delta import Delta
from peft_engine.exchange.findings import Findings
from peft_engine.exchange.folder import write_folder
from peft_engine.exchange.hub_heads import write_hub_head
from peft_engine.exchange.hub_import import holders, kind_of
from peft_engine.exchange.hub_names import (
    CONFIG_FILE,
    HEAD_CONFIG_FILE,
    HEAD_TENSOR_FILES,
    HUB_VERSION,
    LORA_OPTIONS,
    MODEL_CLASSES,
    NAMES,
    TENSOR_FILES,
    Names,
    bottleneck_options,
)
from peft_engine.exchange.sidecar import SIDECAR_FILE, describe
from peft_engine.parts.sites import count_layers, layer_of, linear_sites

ADAPTER_NAME = "tunery"
"""Name of the adapter inside its files; a loader may give it another (``load_as``)."""


def write_hub(base: Base, delta: Delta, folder: Path, found: Findings) -> None:
    """Write a delta as a folder of AdapterHub.

    Args:
        base: The base of the delta.
        delta: The delta, on the CPU.
        folder: An existing folder.
        found: Told what AdapterHub cannot hold; nothing is written then.
    """
    names, manifest = NAMES.get(base.info.model_type), delta.manifest
    if names is None:
        found.refuse(
            "base_not_possible",
            f"adapters of {base.info.model_type} models are not exchanged with AdapterHub; "
            f"those of {', '.join(NAMES)} are",
            "base_model",
        )
        return
    options, tensors = _write_method(base, delta, names, found)
    head: dict[str, Any] = {}
    head_tensors: dict[str, Tensor] = {}
    if manifest.head is not None:
        head, head_tensors = write_hub_head(
            manifest.head, delta.head, manifest.labels, ADAPTER_NAME, found
        )
    if found.problems:
        return
    about = {
        "hidden_size": base.hidden_size,
        "model_class": MODEL_CLASSES[base.info.model_type],
        "model_name": manifest.base_model,
        "model_type": base.info.model_type,
        "name": ADAPTER_NAME,
        "version": HUB_VERSION,
    }
    configs: dict[str, Any] = {
        CONFIG_FILE: about | {"config": options},
        SIDECAR_FILE: describe(delta),
    }
    files: dict[str, Mapping[str, Tensor]] = {TENSOR_FILES[0]: tensors}
    if head:
        configs[HEAD_CONFIG_FILE] = about | {"config": head}
        files[HEAD_TENSOR_FILES[0]] = head_tensors
    write_folder(folder, configs=configs, tensors=files)


def _write_method(
    base: Base, delta: Delta, names: Names, found: Findings
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    methods = delta.manifest.methods
    prefix = f"{base.model.base_model_prefix}."
    if len(methods) == 1 and isinstance(methods[0], BottleneckConfig):
        return _write_bottleneck(base, delta, names, methods[0], prefix)
    if len(methods) == 1 and isinstance(methods[0], LoraConfig):
        return _write_lora(base, delta, names, methods[0], prefix, found)
    found.refuse(
        "method_not_possible",
        f"one bottleneck or one LoRA is exchanged with AdapterHub, this delta has "
        f"{', '.join(method.type for method in methods)}",
        "methods",
    )
    return {}, {}


def _write_bottleneck(
    base: Base, delta: Delta, names: Names, config: BottleneckConfig, prefix: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    at, layers = delta.at_sites(), set()
    for site, holder in holders(base, names, config):
        own = at[site.path]["bottleneck"]
        stem = f"{prefix}{holder}.{ADAPTER_NAME}"
        tensors |= {
            f"{stem}.adapter_down.0.weight": own["down"],
            f"{stem}.adapter_down.0.bias": own["down_bias"],
            f"{stem}.adapter_up.weight": own["up"],
            f"{stem}.adapter_up.bias": own["up_bias"],
        }
        if "scale" in own:
            tensors[f"{stem}.scaling"] = own["scale"]
        layers.add(site.layer)
    width = config.width(base.hidden_size)
    options = bottleneck_options(config, width=width, features=base.hidden_size)
    return options | {"leave_out": _left_out(base, layers)}, tensors


def _write_lora(
    base: Base,
    delta: Delta,
    names: Names,
    config: LoraConfig,
    prefix: str,
    found: Findings,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    at = delta.at_sites()
    kinds = {path: kind_of(path, names) for path in at}
    unknown = [path for path, kind in kinds.items() if kind is None]
    found.refuse_all("site_not_possible", "AdapterHub puts no LoRA there", unknown)
    ranks, scales = {config.rank_at(p) for p in at}, {config.scale_at(p) for p in at}
    if len(ranks) > 1 or len(scales) > 1:
        found.refuse("method_not_possible", "AdapterHub has one rank and one alpha", "lora.r")
    if config.dora:
        found.refuse("method_not_possible", "DoRA is not exchanged with AdapterHub", "lora.dora")
    layers = {layer_of(path) for path in at}
    for site in linear_sites(base.trunk):
        wanted = kind_of(site.path, names) in kinds.values() and site.layer in layers
        if wanted and site.path not in at:
            found.refuse("site_not_possible", "AdapterHub would put a LoRA there too", site.path)
    if found.problems:
        return {}, {}
    tensors: dict[str, Tensor] = {}
    for path, own in at.items():
        for short in ("A", "B"):
            name = f"{prefix}{path}.loras.{ADAPTER_NAME}.lora_{short}"
            tensors[name] = own["lora"][short]
    rank, used = ranks.pop(), set(kinds.values())
    options = {
        **LORA_OPTIONS,
        "r": rank,
        "alpha": scales.pop() * rank,
        "dropout": config.dropout,
        "attn_matrices": [kind for kind in ("q", "k", "v") if kind in used],
        "selfattn_lora": bool(used & {"q", "k", "v"}),
        "intermediate_lora": "intermediate" in used,
        "output_lora": "output" in used,
        "leave_out": _left_out(base, layers),
    }
    return options, tensors


def _left_out(base: Base, layers: set[int | None]) -> list[int]:
    depth = max(count_layers(base.trunk).values(), default=0)
    return [number for number in range(depth) if number not in layers]
