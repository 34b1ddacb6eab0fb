"""Options in a configuration of PEFT: which mean something here, which nothing, which are refused.

An option that is not in these tables is refused unless it is off, so that one that a later PEFT
brings cannot change the function unseen.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from peft_engine.exchange.findings import Findings

_SILENT = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "fan_in_fan_out",  # how PEFT reads the base's weight, which it finds out by itself
        "inference_mode",
        "peft_type",
        "peft_version",
        "revision",
        "runtime_config",
        "task_type",
    }
)
"""Options that change nothing of what a trained adapter computes."""

_TARGETS = frozenset({"exclude_modules", "modules_to_save", "target_modules"})

_KNOWN: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "LORA": _TARGETS
        | {
            "alpha_pattern",
            "bias",
            "ensure_weight_tying",
            "eva_config",  # how A was drawn; the base stays as it is
            "init_lora_weights",
            "layers_pattern",
            "layers_to_transform",
            "lora_alpha",
            "lora_dropout",
            "megatron_core",
            "qalora_group_size",  # means something with use_qalora alone
            "r",
            "rank_pattern",
            "use_dora",
            "use_rslora",
        },
        "IA3": _TARGETS | {"feedforward_modules", "init_ia3_weights"},
        "LN_TUNING": _TARGETS,
        "SHIRA": _TARGETS | {"init_weights", "mask_type", "r", "random_seed"},
        "BEFT": _TARGETS | {"init_weights"},
        "PREFIX_TUNING": frozenset(
            {
                "encoder_hidden_size",
                "modules_to_save",
                "num_attention_heads",
                "num_layers",
                "num_transformer_submodules",
                "num_virtual_tokens",
                "prefix_projection",  # what is saved is its output
                "token_dim",
            }
        ),
    }
)

KINDS = tuple(_KNOWN)
"""Kinds of PEFT that can be held here."""

_NAMES = (str, list)
_FORMS: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {
        "alpha_pattern": (dict,),
        "exclude_modules": _NAMES,
        "feedforward_modules": _NAMES,
        "layers_pattern": _NAMES,
        "layers_to_transform": (int, list),
        "modules_to_save": (list,),
        "rank_pattern": (dict,),
        "target_modules": _NAMES,
    }
)
"""What JSON holds for options that are read item by item; null says the same as no option."""

_MATCHED = ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "layers_pattern")
"""Options whose names, or keys, are matched with those of modules."""

_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to draw a LoRA that take it out of the base first: the file fits only that changed base."""


def refuse_options(config: Mapping[str, Any], kind: str, found: Findings) -> None:
    """Refuse options that change the function in a way that has no place here.

    Args:
        config: The configuration.
        kind: Its ``peft_type``.
        found: Told of each.
    """
    known = _SILENT | _KNOWN[kind]
    for name in sorted(config.keys() - known):
        if config[name]:
            found.refuse("unsupported_option", f"is {_shown(config[name])}", name)
    misshapen = [name for name in _FORMS if not _has_form(config, name)]
    found.refuse_all("bad_config", "is of another form than PEFT writes", misshapen)
    if misshapen:
        return
    for name in _MATCHED:
        value = config.get(name) or ()
        patterns = [value] if isinstance(value, str) else list(value)
        is_regular = isinstance(value, str | Mapping)
        if not all(isinstance(own, str) for own in patterns):
            found.refuse("unsupported_option", "holds something other than names", name)
        elif len(patterns) > _MAX_NAMES:
            found.refuse("unsupported_option", f"holds more than {_MAX_NAMES} names", name)
        elif is_regular and not _are_plain(patterns):
            found.refuse("unsupported_option", "is an expression that is not matched here", name)
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(_CHANGES_BASE):
        found.refuse(
            "unsupported_option",
            f"is {start}, which changes the base; convert the adapter to plain LoRA first "
            "(path_initial_model_for_weight_conversion)",
            "init_lora_weights",
        )


def _has_form(config: Mapping[str, Any], name: str) -> bool:
    value = config.get(name)
    return value is None or (isinstance(value, _FORMS[name]) and not isinstance(value, bool))


def is_targeted(config: Mapping[str, Any], module: str) -> bool:
    """Whether PEFT would put an adapter at a module.

    Args:
        config: The configuration.
        module: Name in the model that PEFT was given.

    Returns:
        As PEFT's ``check_target_module_exists`` has it.
    """
    if _matches(config.get("exclude_modules") or (), module):
        return False
    saved = config.get("modules_to_save") or ()
    if any(re.match(rf"(^|.*\.){re.escape(str(m))}($|\..*)", module) for m in saved):
        return False
    targets = config.get("target_modules") or ()
    if targets == "all-linear":
        return True
    if not _matches(targets, module):
        return False
    layers = config.get("layers_to_transform")
    if isinstance(targets, str) or layers is None or layers == []:
        return True
    number = _layer_number(module, config.get("layers_pattern") or ())
    return number is not None and number in ([layers] if isinstance(layers, int) else layers)


class Patterns:
    """PEFT's ``rank_pattern`` or ``alpha_pattern``.

    Args:
        values: Value by regular expression.
        default: Where none matches.
    """

    def __init__(self, values: Mapping[str, Any], default: Any) -> None:
        # each compiled once: re keeps 512, and a deep model may have more
        self._values = [(_compile(own), value) for own, value in values.items()]
        self._default = default

    def of(self, module: str) -> Any:
        """Value of a module.

        Args:
            module: Name in the model that PEFT was given.

        Returns:
            The value of the first expression that matches.
        """
        found = (value for pattern, value in self._values if pattern.match(module))
        return next(found, self._default)


def _matches(wanted: str | Iterable[str], module: str) -> bool:
    if isinstance(wanted, str):
        return re.fullmatch(wanted, module) is not None
    return any(module == own or module.endswith(f".{own}") for own in wanted)


def _compile(pattern: str) -> re.Pattern[str]:
    """A pattern of ranks, as PEFT completes it."""
    return re.compile(rf"(.*\.)?({pattern})$")


def _are_plain(patterns: Iterable[str]) -> bool:
    """Whether foreign expressions are sure to end: some take a time that doubles with each letter.

    While one is matched nothing else runs in this process. No group is repeated, so that each
    repeat has at most as many ways as a name has characters, and each choice as many as it names.
    """
    ways: int = 0
    for pattern in patterns:
        plain = re.sub(r"\\.|\[[^\]]*\]", "x", pattern)  # without escapes and sets
        if len(pattern) > _MAX_PATTERN or re.search(r"\)[*+{]", plain):
            return False
        repeats = len(re.findall(r"[*+{]", plain))
        # behind a bracket it tells the kind of a group, behind a repeat it makes it a lazy one
        choices = len(re.findall(r"(?<![(*+}?])\?", plain))
        if repeats > _MAX_REPEATS or choices > _MAX_CHOICES:
            return False
        ways += _NAME_CHARACTERS**repeats * 2**choices * _count_alternatives(plain)
        try:
            _compile(pattern)
        except (re.error, OverflowError, RecursionError):
            return False
    return ways <= _MAX_WAYS


def _count_alternatives(pattern: str) -> int:
    """The product of the numbers of alternatives in all groups."""
    found, open_groups = 1, [1]
    for sign in pattern:
        if sign == "|":
            open_groups[-1] += 1
        elif sign == "(":
            open_groups.append(1)
        elif sign == ")" and len(open_groups) > 1:
            found *= open_groups.pop()
    for count in open_groups:
        found *= count
    return found


_MAX_NAMES = 4096
"""Of an option; a model of 80 layers has 560 linears."""
_MAX_PATTERN = 2000
_MAX_REPEATS = 4
_MAX_CHOICES = 16
"""Patterns that PEFT's documents show have a hundred characters and one or two repeats."""
_NAME_CHARACTERS = 40
_MAX_WAYS: int = 8 * _NAME_CHARACTERS**_MAX_REPEATS
"""Of all expressions of an option together, at some 10 ns each."""


def _layer_number(module: str, patterns: str | Sequence[str]) -> int | None:
    names = [patterns] if isinstance(patterns, str) else list(patterns)
    if not names:
        match = re.match(r".*?\.[^.]*\.(\d+)\.", module)
        return int(match.group(1)) if match else None
    for name in names:
        match = re.match(rf"(?:^|.*?\.){re.escape(name)}\.(\d+)\.", module)
        if match:
            return int(match.group(1))
    return None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
