"""PREFIX_TUNING of PEFT: keys and values before those of the tokens, in one softmax.

PEFT puts them into the cache, so that the first token stands at the position behind the prefix;
here it stands at position 0. Where positions only turn queries and keys (RoPE) the difference is
one turn of every prefix key by the length of the prefix, and the exchange is exact:

    (R(P + t) q) · k = (R(t) q) · (R(-P) k).

Where positions are looked up in a table, or give a bias by distance, no prefix of ours computes
what PEFT's does, and the exchange is refused.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peft_engine.bases.base import Base
from peft_engine.configs.methods import PrefixConfig
from peft_engine.exchange.findings import Findings
from peft_engine.exchange.part import Part
from peft_engine.parts.anatomy import self_attentions
from peft_engine.parts.sites import Site

# Legend of axes: P length of the prefix, L layers, G heads of keys and values, d width of a head.

EMBEDDINGS = "prompt_embeddings"
"""(P, L · 2 · G · d): for each layer keys, then values."""

_FIXED_ROTATIONS = frozenset({"default", "linear", "llama3"})
"""Kinds of RoPE whose angle at a position does not depend on the length of the row."""


def read_prefix(base: Base, raw: Tensor, config: Mapping[str, Any], found: Findings) -> Part:
    """Read a prefix.

    Args:
        base: The base.
        raw: ``prompt_embeddings`` of the file.
        config: Configuration of PEFT.
        found: Told what does not fit.

    Returns:
        One prefix without gates; nothing when there is none to be had.
    """
    sites = _sites(base, found)
    if not sites:
        return Part()
    groups, width = _heads(sites[0])
    length = len(raw)
    told = config.get("num_virtual_tokens")
    if raw.dim() != 2 or raw.shape[1] != len(sites) * 2 * groups * width or told != length:
        found.refuse(
            "wrong_shape",
            f"{tuple(raw.shape)} is not ({told}, {len(sites) * 2 * groups * width})",
            EMBEDDINGS,
        )
        return Part()
    part = Part([PrefixConfig(length=length, gate="none")])
    both = raw.view(length, len(sites), 2, groups, width).permute(1, 2, 3, 0, 4)  # (L, 2, G, P, d)
    for site, (keys, values) in zip(sites, both, strict=True):
        turned = _turn(base, keys, by=length, back=True)
        part.put(site.path, "prefix", keys=turned, values=values.clone())
    return part


def write_prefix(
    base: Base,
    config: PrefixConfig,
    tensors: Mapping[str, Mapping[str, Tensor]],
    found: Findings,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A prefix as PEFT writes it.

    Args:
        base: The base.
        config: The method.
        tensors: Keys and values by path.
        found: Told what PEFT cannot hold.

    Returns:
        Options for the configuration, and tensors by name.
    """
    if config.gate != "none":
        found.refuse(
            "method_not_possible",
            "a gated prefix has a softmax of its own; PEFT's shares that of the tokens "
            "(gate: none)",
            "prefix",
        )
    sites = _sites(base, found)
    missing = [site.path for site in sites if site.path not in tensors]
    found.refuse_all("site_not_possible", "PEFT has a prefix at every layer", missing)
    if found.problems:
        return {}, {}
    columns = []
    for site in sites:
        own = tensors[site.path]
        keys = _turn(base, own["keys"], by=config.length, back=False)
        columns += [t.transpose(0, 1).flatten(1) for t in (keys, own["values"])]  # (P, G · d)
    groups, width = _heads(sites[0])
    options = {
        "num_virtual_tokens": config.length,
        "num_layers": len(sites),
        "num_attention_heads": groups,
        "token_dim": groups * width,
        "num_transformer_submodules": 1,
        "prefix_projection": False,
        "encoder_hidden_size": groups * width,
    }
    return options, {EMBEDDINGS: torch.cat(columns, dim=1)}


def _sites(base: Base, found: Findings) -> list[Site]:
    """The attentions, where positions only turn queries and keys; none when they do otherwise."""
    reason = _why_not(base)
    if reason is not None:
        found.refuse("positions_differ", reason, "PREFIX_TUNING")
        return []
    return list(self_attentions(base.trunk))


def _why_not(base: Base) -> str | None:
    config: Any = base.model.config
    if base.architecture != "causal" or _rotary(base) is None:
        return (
            f"PEFT counts the positions of {base.info.model_type} models from behind its prefix, "
            "ours from the first token; this cannot be made up for where positions are learned or "
            "weigh distances"
        )
    kind = str(getattr(_rotary(base), "rope_type", "default"))
    if kind not in _FIXED_ROTATIONS or float(getattr(_rotary(base), "attention_scaling", 1)) != 1:
        return f"positions turn by {kind!r}, which depends on the length of the row"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "attention looks through a sliding window, which would leave the prefix behind"
    return None


def _rotary(base: Base) -> Any:
    return getattr(base.trunk, "rotary_emb", None)


def _turn(base: Base, keys: Tensor, *, by: int, back: bool) -> Tensor:
    """Keys (G, P, d) turned by so many positions, in fp32 on the CPU."""
    rotary: nn.Module = _rotary(base)
    place = torch.tensor([[by]], device=base.device)
    probe = torch.zeros(1, dtype=torch.float32, device=base.device)
    with torch.no_grad():
        cos, sin = (t.float().cpu().view(1, 1, -1) for t in rotary(probe, place))  # (1, 1, d)
    sin = -sin if back else sin
    first, second = keys.chunk(2, dim=-1)
    turned: Tensor = keys * cos + torch.cat([-second, first], dim=-1) * sin
    return turned


def _heads(site: Site) -> tuple[int, int]:
    width = site.in_features // site.heads
    return site.out_features // width, width
