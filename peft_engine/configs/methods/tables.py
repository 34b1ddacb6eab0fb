"""The methods and their options as Markdown, for the pages in ``docs/methods``."""

import json
from collections.abc import Mapping
from types import MappingProxyType

from peft_engine.configs.methods.bitfit import BitfitConfig
from peft_engine.configs.methods.bottleneck import BottleneckConfig
from peft_engine.configs.methods.full import FullConfig
from peft_engine.configs.methods.head_only import HeadOnlyConfig
from peft_engine.configs.methods.ia3 import Ia3Config
from peft_engine.configs.methods.lora import LoraConfig
from peft_engine.configs.methods.mask import MaskConfig
from peft_engine.configs.methods.norm import NormConfig
from peft_engine.configs.methods.prefix import PrefixConfig
from peft_engine.configs.model import Config

CONFIGS: Mapping[str, type[Config]] = MappingProxyType(
    {
        "lora": LoraConfig,
        "bottleneck": BottleneckConfig,
        "bitfit": BitfitConfig,
        "ia3": Ia3Config,
        "norm": NormConfig,
        "mask": MaskConfig,
        "prefix": PrefixConfig,
        "head-only": HeadOnlyConfig,
        "full": FullConfig,
    }
)


def options_table(name: str) -> str:
    """The options of one method.

    Args:
        name: Its ``type``.

    Returns:
        A Markdown table, or a sentence when there are none.
    """
    fields = CONFIGS[name].model_fields
    rows = [
        f"| `{option}` | `{json.dumps(field.get_default(call_default_factory=True))}` "
        f"| {field.description} |"
        for option, field in fields.items()
        if option != "type"
    ]
    if not rows:
        return "No options.\n"
    return "\n".join(["| option | default | means |", "|---|---|---|", *rows]) + "\n"


def methods_table() -> str:
    """All methods, one line each.

    Returns:
        A Markdown table.
    """
    rows = [
        f"| [`{name}`]({name}.md) | {_first_line(config)} | {_options(config)} |"
        for name, config in CONFIGS.items()
    ]
    return "\n".join(["| `type` | what learns | options |", "|---|---|---|", *rows]) + "\n"


def _first_line(config: type[Config]) -> str:
    return (config.__doc__ or "").strip().splitlines()[0]


def _options(config: type[Config]) -> str:
    names = [f"`{name}`" for name in config.model_fields if name != "type"]
    return ", ".join(names) or "none"
