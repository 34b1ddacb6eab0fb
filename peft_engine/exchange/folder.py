"""Files of a foreign adapter: JSON and tensors, read without running anything that they hold."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from peft_engine.exchange.findings import Findings

MAX_JSON_BYTES = 4 << 20
"""A configuration has kilobytes; lists of target modules of deep models some hundred of them."""


def read_json(path: Path, findings: Findings) -> dict[str, Any]:
    """Read a configuration.

    Args:
        path: The file.
        findings: Told when it is none.

    Returns:
        The object; empty when it cannot be read.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            findings.refuse("bad_config", f"is larger than {MAX_JSON_BYTES} bytes", path.name)
            return {}
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        findings.refuse("bad_config", "is not readable as JSON", path.name)
        return {}
    if not isinstance(found, dict):
        findings.refuse("bad_config", "holds no JSON object", path.name)
        return {}
    return found


def read_tensors(folder: Path, names: tuple[str, ...], findings: Findings) -> dict[str, Tensor]:
    """Read the first of some files that is there.

    Args:
        folder: Where to look.
        names: File names, safetensors first; of ``.bin`` files only the tensors are read.
        findings: Told when there is none, or it cannot be read.

    Returns:
        Tensors on the CPU by name: fp32, integers as they are.
    """
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        findings.refuse("missing_file", f"none of {', '.join(names)} is there")
        return {}
    try:
        raw = _read_safetensors(path) if path.suffix == ".safetensors" else _read_bin(path)
    except Exception as error:  # noqa: BLE001  a foreign file may break its reader in any way
        findings.refuse(
            "bad_tensors", f"cannot be read as tensors ({type(error).__name__})", path.name
        )
        return {}
    return _checked(raw, path.name, findings)


def write_folder(
    folder: Path, *, configs: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Write the files of an adapter; the same content gives the same bytes.

    Args:
        folder: An existing folder.
        configs: JSON by file name.
        tensors: Tensors by file name.
    """
    for name, config in configs.items():
        text = json.dumps(config, indent=2, sort_keys=True)
        (folder / name).write_text(f"{text}\n", encoding="utf-8")
    for name, own in tensors.items():
        kept = {key: own[key].detach().cpu().contiguous().clone() for key in sorted(own)}
        save_file(kept, folder / name, metadata={"format": "pt"})


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping


def _read_bin(path: Path) -> Any:
    # weights_only: tensors and plain containers, nothing is imported or called
    return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251


def _checked(raw: Any, name: str, findings: Findings) -> dict[str, Tensor]:
    if not isinstance(raw, Mapping) or not all(isinstance(key, str) for key in raw):
        findings.refuse("bad_tensors", "holds no tensors by name", name)
        return {}
    found: dict[str, Tensor] = {}
    for key, value in raw.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            findings.refuse("bad_tensors", "is no dense tensor", key)
        elif value.dim() == 0:
            findings.refuse("bad_tensors", "is a single number", key)
        elif value.is_floating_point():
            found[key] = value.detach().float()
            if not bool(found[key].isfinite().all()):
                findings.refuse("bad_tensors", "holds values that are not numbers", key)
        elif value.is_complex() or value.dtype == torch.bool:
            findings.refuse("bad_tensors", f"is of the type {value.dtype}", key)
        else:
            found[key] = value.detach()
    return found
