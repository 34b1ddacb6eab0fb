"""Kinds of PEFT that are a vector for each module: IA3, LN_TUNING and BEFT, and biases of LORA.

A method of ours acts at every site of its kind. Where a file leaves one out, the vector that does
nothing stands there, so that the function is the same; going on to train then trains it too.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from peft_engine.configs.methods import BitfitConfig, Ia3Config, NormConfig
from peft_engine.exchange.findings import Findings
from peft_engine.exchange.part import Part, Placed
from peft_engine.methods.table import METHODS
from peft_engine.parts.anatomy import values_of_attention
from peft_engine.parts.sites import Site, bias_of, linear_sites

# Legend of axes: I input width, O output width, D width of a norm.

SiteTensors = Mapping[str, Mapping[str, Tensor]]
"""Tensors by path and short name."""


def read_ia3(trunk: nn.Module, placed: Sequence[Placed], found: Findings) -> Part:
    """Read factors.

    A factor on the inputs of the linear that ends an attention is one on the values, which reach it
    as weighted sums, and one on queries is one on the keys that they meet: such factors move there.
    PEFT's own defaults ask for the first with BERT and for the second with GPT-2.

    Args:
        trunk: The part of the base where methods may act.
        placed: ``ia3_l`` by module: (O, 1) for outputs, (1, I) for inputs.
        found: Told what does not fit.

    Returns:
        One (IA)³.
    """
    part, sites = Part([Ia3Config()]), _sites(trunk, "ia3")
    for path, site in sites.items():
        part.put(path, "ia3", **{_side(site): torch.ones(_width(site))})
    values = values_of_attention(trunk)
    for own in sorted(placed, key=lambda one: one.path in values):
        vector = own.tensors.get("ia3_l")
        if vector is None:
            found.refuse("missing_tensor", "is not in the file", f"{own.path}.ia3_l")
        elif own.path in sites:
            _take_factor(part, sites[own.path], vector, found)
        elif own.path in values and vector.shape[0] == 1:
            _move_to_values(part, sites[values[own.path]], vector.flatten(), found)
        else:
            found.refuse(
                "unsupported_site", "is neither keys, values nor the end of an FFN", own.path
            )
    return part


def _take_factor(part: Part, site: Site, vector: Tensor, found: Findings) -> None:
    side, width = _side(site), _width(site)
    flat, is_input = vector.flatten(), vector.dim() == 2 and vector.shape[0] == 1
    if vector.dim() != 2 or 1 not in vector.shape or is_input != (side == "in"):
        found.refuse("wrong_shape", f"{tuple(vector.shape)} scales the other side", site.path)
    elif len(flat) == width:
        part.put(site.path, "ia3", **{side: flat})
    elif side == "out" and len(flat) * 2 == width * 3:
        queries, keys, values = flat.chunk(3)  # GPT-2's fused projection
        part.put(site.path, "ia3", out=torch.cat([queries * keys, values]))
    else:
        found.refuse("wrong_shape", f"{tuple(vector.shape)} is not {width} factors", site.path)


def _move_to_values(part: Part, site: Site, factors: Tensor, found: Findings) -> None:
    own = part.tensors[f"{site.path}:ia3.out"]
    if own.shape != factors.shape:
        found.refuse(
            "unsupported_site",
            "scales what attention gives, where several heads share their values",
            site.path,
        )
        return
    part.put(site.path, "ia3", out=own * factors)


def write_ia3(
    trunk: nn.Module, sites: SiteTensors, prefix: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(IA)³ as PEFT writes it.

    Args:
        trunk: The part of the base where methods may act.
        sites: ``in`` or ``out`` by path.
        prefix: What stands before a path in the model of transformers.

    Returns:
        Options for the configuration, and tensors by name.
    """
    tensors: dict[str, Tensor] = {}
    widths = {site.path: site.out_features for site in linear_sites(trunk)}
    for path, own in sites.items():
        stem = f"base_model.model.{prefix}{path}.ia3_l"
        if "in" in own:
            tensors[stem] = own["in"].view(1, -1)
        else:
            free = widths[path] - len(own["out"])
            tensors[stem] = pad(own["out"], (free, 0), value=1.0).view(-1, 1)
    inputs = sorted(f"{prefix}{path}" for path, own in sites.items() if "in" in own)
    names = sorted(f"{prefix}{path}" for path in sites)
    return {"target_modules": names, "feedforward_modules": inputs}, tensors


def read_norms(trunk: nn.Module, placed: Sequence[Placed], found: Findings) -> Part:
    """Read gains and biases of norms, which PEFT stores whole and we as differences.

    Args:
        trunk: The part of the base where methods may act.
        placed: ``ln_tuning_layers.weight`` and ``.bias`` (D,) by module.
        found: Told what does not fit.

    Returns:
        One norm tuning.
    """
    part, sites = Part([NormConfig()]), _sites(trunk, "norm")
    for path, site in sites.items():
        shapes = METHODS["norm"].shapes(site, NormConfig())
        part.put(path, "norm", **{name: torch.zeros(shape) for name, shape in shapes.items()})
    for own in placed:
        if own.path not in sites:
            found.refuse("unsupported_site", "is no norm of the base", own.path)
        for name in ("weight", "bias"):
            full = f"{own.path}:norm.{name}"
            if full in part.tensors:
                base = getattr(trunk.get_submodule(own.path), name)
                found_here = own.tensors.get(f"ln_tuning_layers.{name}")
                _take_difference(part, full, found_here, base, found)
    return part


def write_norms(
    trunk: nn.Module, sites: SiteTensors, prefix: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Norm tuning as PEFT writes it.

    Args:
        trunk: The part of the base where methods may act.
        sites: ``weight`` and ``bias`` by path.
        prefix: What stands before a path in the model of transformers.

    Returns:
        Options for the configuration, and tensors by name.
    """
    tensors = {
        f"base_model.model.{prefix}{path}.ln_tuning_layers.{name}": _whole(trunk, path, name, value)
        for path, own in sites.items()
        for name, value in own.items()
    }
    return {"target_modules": sorted(f"{prefix}{path}" for path in sites)}, tensors


def read_beft(trunk: nn.Module, placed: Sequence[Placed], found: Findings) -> Part:
    """Read new biases of linears.

    Args:
        trunk: The part of the base where methods may act.
        placed: ``beft_bias`` (1, O) by module.
        found: Told what does not fit.

    Returns:
        One BitFit that gives every linear a bias.
    """
    config = BitfitConfig(norms=False, biases="all")
    part, sites = Part([config]), {site.path: site for site in linear_sites(trunk)}
    _put_zero_biases(part, sites.values())
    for own in placed:
        site, vector = sites.get(own.path), own.tensors.get("beft_bias")
        if site is None:
            found.refuse("unsupported_site", "is no linear of the layers", own.path)
        elif vector is None:
            found.refuse("missing_tensor", "is not in the file", f"{own.path}.beft_bias")
        elif vector.numel() != site.out_features:
            found.refuse("wrong_shape", f"{tuple(vector.shape)}", own.path)
        else:
            part.put(own.path, "bitfit", bias=vector.flatten())
    return part


def write_beft(sites: SiteTensors, prefix: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Biases of linears as PEFT writes them.

    Args:
        sites: ``bias`` (O,) by path.
        prefix: What stands before a path in the model of transformers.

    Returns:
        Options for the configuration, and tensors by name.
    """
    tensors = {
        f"base_model.model.{prefix}{path}.beft_bias": own["bias"].view(1, -1)
        for path, own in sites.items()
    }
    return {"target_modules": sorted(f"{prefix}{path}" for path in sites)}, tensors


def read_biases(trunk: nn.Module, biases: Mapping[str, Tensor], found: Findings) -> Part:
    """Read the biases that a LORA of PEFT trains besides, stored whole.

    Args:
        trunk: The part of the base where methods may act.
        biases: (O,) by path of linears and norms.
        found: Told what does not fit.

    Returns:
        One BitFit over all biases that the base has.
    """
    config = BitfitConfig(biases="existing")
    part = Part([config])
    sites = {site.path: site for site in METHODS["bitfit"].sites(trunk, config)}
    _put_zero_biases(part, sites.values())
    for path, value in biases.items():
        if path in sites:
            base = bias_of(trunk.get_submodule(path))
            _take_difference(part, f"{path}:bitfit.bias", value, base, found)
        elif not _equals_base(trunk, path, value):
            found.refuse("unsupported_site", "has a bias that cannot be changed here", path)
    return part


def write_biases(
    trunk: nn.Module, sites: SiteTensors, prefix: str, lora: Iterable[str]
) -> dict[str, Tensor]:
    """Biases beside a LORA as PEFT writes them with ``bias="all"``: whole, and all of the model.

    Args:
        trunk: The part of the base where methods may act.
        sites: ``bias`` (O,) by path.
        prefix: What stands before a path in the model of transformers.
        lora: Paths at which the LORA acts.

    Returns:
        Tensors by name.
    """
    wrapped = set(lora)
    tensors: dict[str, Tensor] = {}
    for name, value in trunk.named_parameters():
        path, _, last = name.rpartition(".")
        if last == "bias":
            change = sites[path]["bias"] if path in sites else 0.0
            inside = ".base_layer" if path in wrapped else ""
            key = f"base_model.model.{prefix}{path}{inside}.bias"
            tensors[key] = value.detach().float().cpu() + change
    return tensors


def _put_zero_biases(part: Part, sites: Iterable[Site]) -> None:
    for site in sites:
        part.put(site.path, "bitfit", bias=torch.zeros(site.out_features))


def _equals_base(trunk: nn.Module, path: str, value: Tensor) -> bool:
    try:
        base = bias_of(trunk.get_submodule(path))
    except AttributeError:
        return False
    return base is not None and torch.equal(base.detach().float().cpu(), value)


def _take_difference(
    part: Part, full: str, value: Tensor | None, base: Tensor | None, found: Findings
) -> None:
    if value is None:
        found.refuse("missing_tensor", "is not in the file", full)
    elif base is None or value.shape != base.shape:
        found.refuse("wrong_shape", f"{tuple(value.shape)} does not fit the base", full)
    else:
        part.tensors[full] = value - base.detach().float().cpu()


def _whole(trunk: nn.Module, path: str, name: str, change: Tensor) -> Tensor:
    base: Tensor = getattr(trunk.get_submodule(path), name)
    return base.detach().float().cpu() + change


def _sites(trunk: nn.Module, method: str) -> dict[str, Site]:
    config = {"ia3": Ia3Config(), "norm": NormConfig()}[method]
    return {site.path: site for site in METHODS[method].sites(trunk, config)}


def _side(site: Site) -> str:
    return "in" if site.in_features else "out"


def _width(site: Site) -> int:
    return site.in_features or site.out_features
