"""SHIRA of PEFT: chosen entries of weight matrices, r · (in + out) of each.

Ours have the same share of every matrix instead. Both are filled up with entries of value zero, so
that the function is the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from peft_engine.configs.methods import MaskConfig
from peft_engine.exchange.endings import name_endings
from peft_engine.exchange.findings import Findings
from peft_engine.exchange.part import Part, Placed
from peft_engine.methods.table import METHODS
from peft_engine.parts.sites import Site, linear_sites

# Legend of axes: K chosen entries, I input width, O output width.

_MAX_DENSITY = 0.5
"""Of a mask of ours; above it a dense difference is smaller."""

SiteTensors = Mapping[str, Mapping[str, Tensor]]


def read_shira(trunk: nn.Module, placed: Sequence[Placed], found: Findings) -> Part:
    """Read chosen entries.

    Args:
        trunk: The part of the base where methods may act.
        placed: ``shira_weight`` (K,) and ``shira_indices`` (2, K) by module.
        found: Told what does not fit.

    Returns:
        One mask; nothing when there is none to be had.
    """
    sites = {site.path: site for site in linear_sites(trunk)}
    entries: dict[str, tuple[Tensor, Tensor]] = {}
    for own in placed:
        site = sites.get(own.path)
        if site is None:
            found.refuse("unsupported_site", "is no linear of the layers", own.path)
        elif (read := _read_entries(own, site, found)) is not None:
            entries[own.path] = read
    if found.problems or not entries:
        return Part()
    density = _density(entries, sites)
    if density > _MAX_DENSITY:
        # r is a whole number, so that small matrices are filled up far above what learned.
        entries = {path: _without_zeros(*own) for path, own in entries.items()}
        density = _density(entries, sites)
    if density > _MAX_DENSITY:
        found.refuse("unsupported_option", f"{density:.0%} of a matrix are chosen", "r")
        return Part()
    config = MaskConfig(
        selection="random", density=density, targets=name_endings(entries, list(sites))
    )
    part = Part([config])
    for path, (flat, values) in entries.items():
        count = METHODS["mask"].shapes(sites[path], config)["values"][0]
        flat, values = _fill(flat, values, count=count)
        part.put(path, "mask", indices=flat.int(), values=values)
    return part


def _density(entries: Mapping[str, tuple[Tensor, Tensor]], sites: Mapping[str, Site]) -> float:
    return max(len(flat) / _size(sites[path]) for path, (flat, _) in entries.items())


def _without_zeros(flat: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Entries that do something; the first where none does, since a site has one at least."""
    kept = values != 0
    kept[0] |= not bool(kept.any())
    return flat[kept], values[kept]


def _read_entries(own: Placed, site: Site, found: Findings) -> tuple[Tensor, Tensor] | None:
    """Rising flat indices, each once, and the sum of the values at each."""
    values, places = own.tensors.get("shira_weight"), own.tensors.get("shira_indices")
    if values is None or places is None:
        missing = "shira_weight" if values is None else "shira_indices"
        found.refuse("missing_tensor", "is not in the file", f"{own.path}.{missing}")
        return None
    if values.dim() != 1 or tuple(places.shape) != (2, len(values)) or not len(values):
        found.refuse("wrong_shape", f"{tuple(places.shape)} places of values", own.path)
        return None
    limits = torch.tensor([[site.out_features], [site.in_features]])
    if places.is_floating_point() or not bool(((places >= 0) & (places < limits)).all()):
        found.refuse("wrong_shape", "has places outside the matrix", own.path)
        return None
    flat = places[0].long() * site.in_features + places[1].long()
    flat, inverse = torch.unique(flat, return_inverse=True)
    return flat, values.new_zeros(len(flat)).index_add(0, inverse, values)


def write_shira(
    trunk: nn.Module, config: MaskConfig, sites: SiteTensors, prefix: str, found: Findings
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A mask as PEFT writes it.

    Args:
        trunk: The part of the base where methods may act.
        config: The method.
        sites: Its tensors by path and short name.
        prefix: What stands before a path in the model of transformers.
        found: Told what PEFT cannot hold.

    Returns:
        Options for the configuration, and tensors by name.
    """
    shapes = {site.path: site for site in linear_sites(trunk)}
    flats = {path: _flat(config, shapes[path], own) for path, own in sites.items()}
    for path in sites:
        if not isinstance(trunk.get_submodule(path), nn.Linear):
            found.refuse("site_not_possible", "PEFT's SHIRA acts on nn.Linear only", path)
    rank = max(-(-len(flat) // _sides(shapes[path])) for path, (flat, _) in flats.items())
    tensors: dict[str, Tensor] = {}
    for path, (flat, values) in flats.items():
        site = shapes[path]
        count = rank * _sides(site)
        if count > _size(site):
            found.refuse(
                "site_not_possible",
                f"PEFT would choose {count} of {_size(site)} entries: the mask is too dense",
                path,
            )
            continue
        flat, values = _fill(flat, values, count=count)
        places = torch.stack([flat // site.in_features, flat % site.in_features]).int()
        stem = f"base_model.model.{prefix}{path}"
        tensors |= {f"{stem}.shira_weight": values, f"{stem}.shira_indices": places}
    names = sorted(f"{prefix}{path}" for path in sites)
    return {"r": rank, "mask_type": "random", "target_modules": names}, tensors


def _flat(config: MaskConfig, site: Site, own: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    if config.pattern == "unstructured":
        return own["indices"].long(), own["values"]
    columns = torch.arange(site.in_features)
    return (own["rows"].long().unsqueeze(1) * site.in_features + columns).flatten(), own[
        "values"
    ].flatten()


def _fill(flat: Tensor, values: Tensor, *, count: int) -> tuple[Tensor, Tensor]:
    """The same entries, and the first free ones with value zero up to a count, rising."""
    free = count - len(flat)
    if free <= 0:
        return flat, values
    taken = torch.zeros(count, dtype=torch.bool)
    taken[flat[flat < count]] = True
    more = (~taken).nonzero().flatten()[:free]
    flat, order = torch.cat([flat, more]).sort()
    return flat, torch.cat([values, values.new_zeros(free)])[order]


def _size(site: Site) -> int:
    return site.in_features * site.out_features


def _sides(site: Site) -> int:
    return site.in_features + site.out_features
