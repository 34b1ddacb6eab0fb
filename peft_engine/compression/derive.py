"""Makes derived bases: the published weights, pruned first, then quantized.

A derived base is what its name says: parent, pruning with the rows that decided, quantization. So
its fingerprint is known before it is made, and it is made anew wherever it is loaded, always from
the weights as published and in fp32 on the CPU: the same integers on every host. What cannot be
made anew without the rows, the choice of what pruning takes away, is kept: the pruning plan.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from peft_engine.bases.base import Base, BaseInfo, load_described
from peft_engine.compression.pruning import Calibration, PruningPlan, apply_plan, prune
from peft_engine.compression.quantization.library import has_library
from peft_engine.compression.quantization.quantize import quantize
from peft_engine.compression.watch import UNWATCHED, Watch
from peft_engine.configs.base import BaseConfig, Quantization, join_base_name
from peft_engine.configs.pruning import PruningConfig
from peft_engine.errors import BaseModelError, ConfigError
from peft_engine.runtime import Precision, pick_device

_log = logging.getLogger(__name__)

_SCHEME_VERSIONS: Mapping[Quantization, int] = {"int8": 2}
"""Part of every derived fingerprint: raised whenever the same name would mean other weights.

1 where none is named. ``int8`` had weights of 7 bits in its first version.
"""

_LIBRARY_SCHEMES = ("int8", "int8-weight-only", "nf4")
"""Quantizations that kernels of bitsandbytes can compute with."""

_CALIBRATION_DIGITS = 16
"""Of the digest of the rows, in the name. 64 bits keep rows apart by chance; what a plan takes away
is then named by the whole fingerprint, in which the parent stands as well."""


def describe_derived(parent: BaseInfo, derivation: BaseConfig) -> BaseInfo:
    """Identify a derived base without making it.

    Args:
        parent: A base as published.
        derivation: What is to be done to it; pruning that looks at rows names them.

    Returns:
        The description; the parent's own where nothing is done.

    Raises:
        ConfigError: Pruning does not say which rows decide (``calibration_missing``).
    """
    if not derivation.is_derived:
        return parent
    pruning = derivation.pruning
    if pruning is not None and pruning.looks_at_rows and pruning.calibration is None:
        raise ConfigError(
            f"{derivation.name!r} does not say which rows decide what is taken away; name a base "
            f"that a job made, such as {parent.name}@{pruning.name}-0123456789abcdef",
            code="calibration_missing",
            param="base_model",
        )
    return replace(
        parent,
        name=join_base_name(parent.name, derivation),
        fingerprint=_fingerprint(parent.fingerprint, derivation),
        derivation=derivation,
        parent_fingerprint=parent.fingerprint,
    )


def name_rows(derivation: BaseConfig, calibration: Calibration) -> BaseConfig:
    """Say in a derivation which rows decide what is taken away.

    Args:
        derivation: With pruning that looks at rows.
        calibration: The rows.

    Returns:
        The same, whole.

    Raises:
        ConfigError: It prunes nothing (``bad_input``).
    """
    if derivation.pruning is None:
        raise ConfigError("no rows decide where nothing is pruned", code="bad_input", param="base")
    digest = calibration.digest.removeprefix("sha256:")[:_CALIBRATION_DIGITS]
    pruning = derivation.pruning.model_copy(update={"calibration": digest})
    return derivation.model_copy(update={"pruning": pruning})


def plan_name(parent: BaseInfo, pruning: PruningConfig) -> str:
    """Fingerprint under which the plan of a pruning is kept.

    Args:
        parent: The base as published.
        pruning: What is taken away, with the rows that decided.

    Returns:
        ``sha256:…`` of the pruned base before it is quantized: every base of one pruning has it.
    """
    return describe_derived(parent, BaseConfig(pruning=pruning)).fingerprint


def plan_path(models_dir: Path, name: str) -> Path:
    """Where a plan is kept on this machine.

    Args:
        models_dir: Folder of models.
        name: What ``plan_name`` gave.

    Returns:
        The file, which need not exist.
    """
    return models_dir / "derived" / f"{name.removeprefix('sha256:')}.safetensors"


def make_plan(
    parent: BaseInfo,
    pruning: PruningConfig,
    calibration: Calibration,
    *,
    watch: Watch = UNWATCHED,
) -> PruningPlan:
    """Choose what is taken away.

    Args:
        parent: A base as published; loaded once more for this, in fp32 on the CPU.
        pruning: How.
        calibration: The rows that decide.
        watch: Told of each part, and asked between them.

    Returns:
        The choice.
    """
    base = load_described(parent, device="cpu", precision="fp32")
    return prune(base, pruning, calibration, watch=watch).plan


def load_derived(
    parent: BaseInfo,
    derivation: BaseConfig,
    *,
    plan: PruningPlan | None = None,
    device: str = "auto",
    precision: Literal["auto"] | Precision = "auto",
    watch: Watch = UNWATCHED,
) -> Base:
    """Load a base and derive from it.

    Args:
        parent: A base as published.
        derivation: What is to be done to it; nothing is fine too.
        plan: What pruning takes away; needed where it looked at rows.
        device: ``auto`` or a torch device.
        precision: Arithmetic of what is not quantized.
        watch: Told of each part, and asked between them.

    Returns:
        The derived base, in evaluation mode, all weights frozen.

    Raises:
        ConfigError: Pruning does not say which rows decide, or does not fit this base.
        BaseModelError: The plan is missing, or the engine cannot compute with the parent.
    """  # noqa: DOC502  raised below
    info = describe_derived(parent, derivation)
    if not derivation.is_derived:
        return load_described(parent, device=device, precision=precision)

    _tell_missing_kernels(derivation.quantization, pick_device(device))

    def change(base: Base) -> Base:
        if derivation.pruning is not None:
            _prune(base, derivation.pruning, plan, watch)
        parameters = sum(weight.numel() for weight in base.model.parameters())
        quantize(base.model, base.trunk, derivation.quantization, watch=watch)
        return replace(base, info=info, parameters=parameters)

    return load_described(parent, device=device, precision=precision, change=change)


def _prune(base: Base, pruning: PruningConfig, plan: PruningPlan | None, watch: Watch) -> None:
    if plan is not None:
        apply_plan(base.model, base.trunk, plan)
    elif not pruning.looks_at_rows:
        prune(base, pruning, Calibration([]), watch=watch)
    else:
        raise BaseModelError(
            f"the rows that decided what {base.name}@{pruning.name} lacks are not here, and "
            "neither is their choice; train a job on it first",
            code="derived_base_missing",
            param="base_model",
        )


def _tell_missing_kernels(quantization: Quantization, device: torch.device) -> None:
    if device.type == "cuda" and quantization in _LIBRARY_SCHEMES and not has_library():
        _log.warning(
            "bitsandbytes is not installed: %s is multiplied by plain torch on %s, which is right "
            "and not fast; install tunery[cuda]",
            quantization,
            device,
        )


def _fingerprint(parent: str, derivation: BaseConfig) -> str:
    """The name says all that is done, in one way; the version says how it is done."""
    version = _SCHEME_VERSIONS.get(derivation.quantization, 1)
    parts = {"parent": parent, "derivation": derivation.name, "version": version}
    text = json.dumps(parts, sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
