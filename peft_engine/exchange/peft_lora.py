"""LORA of PEFT, with DoRA, and the portable form that PEFT, vLLM and LoRAX read alike.

PEFT scales by alpha / r, or alpha / √r, and lets single modules have another rank or alpha by
pattern. vLLM and LoRAX know neither patterns nor layers that are left out. The portable form has
one rank and scale 1: everything else stands in the matrices.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from peft_engine.configs.methods import LoraConfig
from peft_engine.exchange.endings import group_by_ending, name_endings
from peft_engine.exchange.findings import Findings
from peft_engine.exchange.part import Part, Placed
from peft_engine.exchange.peft_options import Patterns
from peft_engine.parts.sites import Site, linear_sites, weight_of

# Legend of axes: I input width, O output width, r rank, R highest rank.

_MAX_PATTERNS = 64
"""As many as a configuration of ours may have; beyond them the factors go into the matrices."""

Ranks = dict[str, int]
Alphas = dict[str, float]


def read_lora(
    trunk: nn.Module, config: Mapping[str, Any], placed: Sequence[Placed], found: Findings
) -> Part:
    """Read the low-rank matrices of a file.

    Args:
        trunk: The part of the base where methods may act.
        config: Configuration of PEFT.
        placed: Tensors by module; ``lora_A`` (r, I), ``lora_B`` (O, r) and perhaps the lengths of
            DoRA (O,).
        found: Told what does not fit.

    Returns:
        One LoRA; nothing when there is none to be had.
    """
    sites = {site.path: site for site in linear_sites(trunk)}
    part, ranks, alphas = Part(), Ranks(), Alphas()
    dora, rslora = bool(config.get("use_dora")), bool(config.get("use_rslora"))
    told_ranks = Patterns(config.get("rank_pattern") or {}, config.get("r", 8))
    told_alphas = Patterns(config.get("alpha_pattern") or {}, config.get("lora_alpha", 8))
    for own in placed:
        site = sites.get(own.path)
        if site is None:
            found.refuse("unsupported_site", "a LoRA acts on linears of the layers only", own.path)
            continue
        tensors = _read_pair(trunk, site, own, found, dora=dora)
        if tensors is None:
            continue
        part.put(own.path, "lora", **tensors)
        rank = ranks[own.path] = len(tensors["A"])
        told = told_ranks.of(own.module)
        if told != rank:
            found.refuse("wrong_shape", f"has rank {rank}, the configuration says {told}", own.path)
        alphas[own.path] = _number(told_alphas.of(own.module), "lora_alpha", found)
    if ranks and not found.problems:
        dropout = _number(config.get("lora_dropout", 0.0), "lora_dropout", found)
        paths = list(sites)
        part.methods.append(
            configure(part, ranks, alphas, paths, dora=dora, rslora=rslora, dropout=dropout)
        )
    return part


def _number(value: Any, name: str, found: Findings) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    found.refuse("unsupported_option", f"is {value!r}, not a number", name)
    return 0.0


def _read_pair(
    trunk: nn.Module, site: Site, own: Placed, found: Findings, *, dora: bool
) -> dict[str, Tensor] | None:
    names = {"lora_A.weight": "A", "lora_B.weight": "B"}
    names |= {"lora_magnitude_vector": "magnitude"} if dora else {}
    missing = names.keys() - own.tensors.keys()
    found.refuse_all("missing_tensor", "is not in the file", (f"{own.path}.{n}" for n in missing))
    if missing:
        return None
    tensors = {short: own.tensors[name] for name, short in names.items()}
    rank = tensors["A"].shape[0] if tensors["A"].dim() == 2 else 0
    shapes: dict[str, tuple[int, ...]] = {
        "A": (rank, site.in_features),
        "B": (site.out_features, rank),
    }
    shapes |= {"magnitude": (site.out_features,)}
    for short, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[short] or not rank:
            found.refuse("wrong_shape", f"{tuple(tensor.shape)} is not {shapes[short]}", own.path)
            return None
    if dora:
        # The file holds lengths, a delta holds what they differ by from those of the base.
        length = weight_of(trunk.get_submodule(site.path)).float().cpu().norm(dim=1)
        tensors["magnitude"] = tensors["magnitude"] - length
    return tensors


def configure(
    part: Part,
    ranks: Ranks,
    alphas: Alphas,
    paths: Sequence[str],
    *,
    dora: bool = False,
    rslora: bool = False,
    dropout: float = 0.0,
) -> LoraConfig:
    """The configuration that means just these modules, ranks and factors.

    Args:
        part: The matrices; changed where only they can hold the factors.
        ranks: Rank by path.
        alphas: alpha by path.
        paths: Every linear of the trunk.
        dora: Whether there are lengths.
        rslora: Whether alpha is divided by √r.
        dropout: Of the inputs, for whoever goes on training.

    Returns:
        The configuration.
    """
    rank, alpha = (Counter(own.values()).most_common(1)[0][0] for own in (ranks, alphas))
    rank_pattern = group_by_ending(ranks, default=rank)
    alpha_pattern = group_by_ending(alphas, default=alpha)
    if max(len(rank_pattern), len(alpha_pattern)) > _MAX_PATTERNS:
        rank = alpha = _fold(part, ranks, alphas, rslora=rslora)
        rank_pattern, alpha_pattern, rslora = {}, {}, False
    everywhere = len(ranks) == len(paths)
    return LoraConfig(
        r=rank,
        alpha=float(alpha),
        dropout=dropout,
        targets="all-linear" if everywhere else name_endings(ranks, paths),
        rslora=rslora,
        dora=dora,
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
    )


def _fold(part: Part, ranks: Ranks, alphas: Alphas, *, rslora: bool) -> int:
    """Pad all matrices to the highest rank and put the factors into B."""
    highest = max(ranks.values())
    for path, rank in ranks.items():
        factor = alphas[path] / (math.sqrt(rank) if rslora else rank)
        down, up = part.tensors[f"{path}:lora.A"], part.tensors[f"{path}:lora.B"]
        padded = pad_pair(down, up * factor, rank=highest)
        part.put(path, "lora", A=padded[0], B=padded[1])
    return highest


def pad_pair(down: Tensor, up: Tensor, *, rank: int) -> tuple[Tensor, Tensor]:
    """The same product with more, empty, ranks.

    Args:
        down: (r, I).
        up: (O, r).
        rank: R, at least r.

    Returns:
        (R, I) and (O, R).
    """
    free = rank - len(down)
    return pad(down, (0, 0, 0, free)), pad(up, (0, free))


def write_lora(
    trunk: nn.Module,
    config: LoraConfig,
    sites: Mapping[str, Mapping[str, Tensor]],
    prefix: str,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A LoRA as PEFT writes it, with patterns.

    Args:
        trunk: The part of the base where methods may act.
        config: The method.
        sites: Its tensors by path and short name.
        prefix: What stands before a path in the model of transformers.

    Returns:
        Options for the configuration, and tensors by name.
    """
    tensors: dict[str, Tensor] = {}
    for path, own in sites.items():
        stem = f"base_model.model.{prefix}{path}"
        tensors |= {f"{stem}.lora_A.weight": own["A"], f"{stem}.lora_B.weight": own["B"]}
        if config.dora:
            length = weight_of(trunk.get_submodule(path)).float().cpu().norm(dim=1)
            tensors[f"{stem}.lora_magnitude_vector"] = length + own["magnitude"]
    ranks = {path: config.rank_at(path) for path in sites}
    # PEFT divides by the root of the module's own rank too, so alpha may stay what it is.
    alphas = {path: config.scale_at(path) * _divisor(config, path) for path in sites}
    options = {
        "r": config.own_r,
        "lora_alpha": _tidy(config.own_alpha),
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "rank_pattern": _whole_names(ranks, config.own_r, prefix),
        "alpha_pattern": {
            name: _tidy(alpha)
            for name, alpha in _whole_names(alphas, config.own_alpha, prefix).items()
        },
        "target_modules": [f"{prefix}{path}" for path in sorted(sites)],
    }
    return options, tensors


def write_portable(
    trunk: nn.Module,
    config: LoraConfig,
    sites: Mapping[str, Mapping[str, Tensor]],
    prefix: str,
    *,
    names_kinds: bool,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A LoRA with one rank and scale 1, at every layer of the modules that it touches.

    vLLM reads ``r`` and ``lora_alpha`` alone, and LoRAX drops a kind of module when a layer of it
    has none: so a zero pair stands where there was nothing.

    Args:
        trunk: The part of the base where methods may act.
        config: The method, without DoRA.
        sites: Its tensors by path and short name.
        prefix: What stands before a path in the model of transformers.
        names_kinds: Whether target modules are named by their last name alone, as vLLM and LoRAX
            want it; not for encoders, whose pooler has names of the layers.

    Returns:
        Options for the configuration, and tensors by name.

    Source: vLLM ``vllm/lora/peft_helper.py``, LoRAX ``lorax_server/adapters/lora.py``.
    """
    rank, all_paths = max(config.rank_at(path) for path in sites), []
    kinds = {path.rpartition(".")[2] for path in sites}
    tensors: dict[str, Tensor] = {}
    for site in linear_sites(trunk):
        if site.path.rpartition(".")[2] not in kinds:
            continue
        own = sites.get(site.path)
        if own is None:
            down = torch.zeros(rank, site.in_features)
            up = torch.zeros(site.out_features, rank)
        else:
            scale = config.scale_at(site.path)
            down, up = pad_pair(own["A"], own["B"] * scale, rank=rank)
        stem = f"base_model.model.{prefix}{site.path}"
        tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
        all_paths.append(f"{prefix}{site.path}")
    options = {
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": config.dropout,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": sorted(kinds) if names_kinds else all_paths,
    }
    return options, tensors


def _divisor(config: LoraConfig, path: str) -> float:
    rank = config.rank_at(path)
    return math.sqrt(rank) if config.rslora else float(rank)


def _whole_names(values: Mapping[str, Any], default: Any, prefix: str) -> dict[str, Any]:
    """Values by whole names, since PEFT takes the first pattern that matches, not the longest."""
    return {
        f"^{prefix}{path}".replace(".", r"\."): value
        for path, value in values.items()
        if not math.isclose(value, default, rel_tol=1e-12)
    }


def _tidy(value: float) -> int | float:
    rounded = round(value)
    return rounded if math.isclose(value, rounded, rel_tol=1e-12) else value
