"""The methods by name, and the fixed order in which several act at one site."""

from collections.abc import Mapping
from types import MappingProxyType

from peft_engine.methods.lora import Lora
from peft_engine.methods.protocol import Method

METHODS: Mapping[str, Method] = MappingProxyType({"lora": Lora()})

POST_ORDER: tuple[str, ...] = ("lora",)
"""After the base: sparse, lora, ia3, bias, bottleneck. Never by the order in a job, so that a
combination means one thing only."""
