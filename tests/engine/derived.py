"""Derived bases of the tiny ones."""

import functools

from peft_engine.bases.base import Base
from peft_engine.compression.derive import load_derived
from peft_engine.configs import BaseConfig


@functools.cache
def derived_from(parent: Base, derivation: str) -> Base:
    """The derived base of a name, made once in a session."""
    return load_derived(parent.info, BaseConfig.parse(derivation), device=str(parent.device))
