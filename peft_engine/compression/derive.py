"""Makes derived bases: the published weights, pruned first, then quantized.

A derived base is what its name says: parent, pruning with the rows that decided, quantization. So
its fingerprint is known before it is made, and it is made anew wherever it is loaded, always from
the weights as published and in fp32 on the CPU: the same integers on every host. What cannot be
made anew without the rows, which weights pruning takes away, is kept in a file.
"""

import hashlib
import json
from dataclasses import replace
from typing import Literal

from peft_engine.bases.base import Base, BaseInfo, load_described
from peft_engine.compression.quantization.quantize import quantize
from peft_engine.configs.base import BaseConfig, join_base_name
from peft_engine.configs.pruning import PruningConfig
from peft_engine.errors import ConfigError
from peft_engine.runtime import Precision

_SCHEME_VERSION = 1
"""Part of every derived fingerprint: raised whenever the same name would mean other weights."""


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
            f"{derivation.name!r} does not say which rows decide what is taken away; name the base "
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


def load_derived(
    parent: BaseInfo,
    derivation: BaseConfig,
    *,
    device: str = "auto",
    precision: Literal["auto"] | Precision = "auto",
) -> Base:
    """Load a base and derive from it.

    Args:
        parent: A base as published.
        derivation: What is to be done to it; nothing is fine too.
        device: ``auto`` or a torch device.
        precision: Arithmetic of what is not quantized.

    Returns:
        The derived base, in evaluation mode, all weights frozen.

    Raises:
        ConfigError: Pruning does not say which rows decide, or its choice is not here.
        BaseModelError: The engine cannot compute with the parent.
    """  # noqa: DOC502  raised below
    info = describe_derived(parent, derivation)
    if not derivation.is_derived:
        return load_described(parent, device=device, precision=precision)

    def change(base: Base) -> Base:
        if derivation.pruning is not None:
            base = _prune(base, derivation.pruning)
        quantize(base.model, base.trunk, derivation.quantization)
        return replace(base, info=info)

    return load_described(parent, device=device, precision=precision, change=change)


def _prune(base: Base, pruning: PruningConfig) -> Base:
    raise ConfigError(
        f"{base.name}: {pruning.name} is not offered yet", code="unsupported", param="base.pruning"
    )


def _fingerprint(parent: str, derivation: BaseConfig) -> str:
    """The name says all that is done, in one way; the version says how it is done."""
    parts = {"parent": parent, "derivation": derivation.name, "version": _SCHEME_VERSION}
    text = json.dumps(parts, sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
