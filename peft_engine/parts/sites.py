"""Sites: the places of a frozen model at which a method may act."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peft_engine.configs.methods import FirstLayers, LastLayers, LayerChoice
from peft_engine.configs.methods.options import Targets
from peft_engine.errors import ConfigError

RESIDUAL = "@1"
"""Ends the path of a site at which the residual stream, the second argument of a post-norm
sub-layer's output module, is changed before it is added."""

ATTENTION = "@attention"
"""Ends the path of a site that stands between the projections of an attention module and its
output (``parts/attention.py``)."""

Depths = Mapping[str, int]
"""Number of layers of each stack, by the path before the number: ``{"decoder.block": 6, …}``."""

SiteKind = Literal["linear", "norm", "sublayer", "embedding", "attention"]

# The number of the layer in `encoder.layer.3.attention…`, `model.layers.3.mlp…`, `h.3.attn…`.
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")

_DISTANCES = {"relative_attention_bias", "rel_embeddings"}
"""Names of tables of distances that stand outside the layers (MPNet, DeBERTa): they are looked up
once for all rows, or read without a look-up."""


@dataclass(frozen=True)
class Site:
    """One place in the trunk of a base.

    Attributes:
        path: Name of the module inside the trunk; ends in ``RESIDUAL`` or ``ATTENTION`` where the
            place is not the whole module.
        kind: What stands there.
        layer: Number of the layer from 0, or None outside the stack of layers.
        in_features: Width of what goes in; of an attention, all its queries.
        out_features: Width of what comes out; of an attention, all its keys (or values).
        has_bias: Whether the base adds a bias there.
        heads: Heads of an attention.
    """

    path: str
    kind: SiteKind
    layer: int | None
    in_features: int
    out_features: int
    has_bias: bool = False
    heads: int = 0


_KEPT: WeakKeyDictionary[nn.Module, tuple[Sequence[Site], Sequence[Site]]] = WeakKeyDictionary()
"""Linears and norms of trunks whose modules no longer change."""


def keep_sites(trunk: nn.Module) -> None:
    """Walk a trunk for the last time: whoever asks for its linears and norms later gets these.

    A walk takes 2 ms for 30 layers, and what a method asks for takes up to ten of them, which a
    thread that serves cannot wait for.

    Args:
        trunk: The part of a base that gives hidden states; none of its modules is replaced or
            given other weights of another size any more.
    """
    _KEPT[trunk] = (tuple(_walk_linears(trunk)), tuple(_walk_norms(trunk)))


def linear_sites(trunk: nn.Module) -> Iterator[Site]:
    """Every linear of the stack of layers: no embedding, no pooler, no language head.

    Args:
        trunk: The part of a base that gives hidden states.

    Returns:
        The sites in the order of the modules. GPT-2's ``Conv1D`` is a linear too.
    """
    kept = _KEPT.get(trunk)
    return _walk_linears(trunk) if kept is None else iter(kept[0])


def norm_sites(trunk: nn.Module) -> Iterator[Site]:
    """Every LayerNorm and RMSNorm, those outside the stack of layers too.

    Args:
        trunk: The part of a base that gives hidden states.

    Returns:
        The sites in the order of the modules.
    """
    kept = _KEPT.get(trunk)
    return _walk_norms(trunk) if kept is None else iter(kept[1])


def _walk_linears(trunk: nn.Module) -> Iterator[Site]:
    for path, module in trunk.named_modules():
        found = _LAYER.search(path)
        if found is not None and isinstance(module, nn.Linear | Conv1D):
            yield _linear_site(path, module, int(found.group(1)))


def outer_linear_sites(trunk: nn.Module) -> Iterator[Site]:
    """Every linear around the layers but the pooler's: ELECTRA's from narrow tables to its width.

    Args:
        trunk: The part of a base that gives hidden states.

    Yields:
        The sites in the order of the modules; most bases have none.
    """
    for path, module in trunk.named_modules():
        outside = layer_of(path) is None and "pooler" not in path.split(".")
        if outside and isinstance(module, nn.Linear | Conv1D):
            yield _linear_site(path, module, None)


def require_linears(trunk: nn.Module) -> list[Site]:
    """The linears of the layers, for a method that is nothing, or only half there, without them.

    Args:
        trunk: The part of a base that gives hidden states.

    Returns:
        As ``linear_sites`` gives them, at least one.

    Raises:
        ConfigError: There is none (``no_such_site``), as in ALBERT, whose layers share their
            weights.
    """
    found = list(linear_sites(trunk))
    if not found:
        raise ConfigError(
            f"{type(trunk).__name__} has no linear in a layer that is known; use another base "
            "model, norm or head-only",
            code="no_such_site",
            param="method",
        )
    return found


def _linear_site(path: str, module: nn.Linear | Conv1D, layer: int | None) -> Site:
    if isinstance(module, Conv1D):
        # Conv1D keeps its weight as (in, out)
        widths = (module.weight.shape[0], module.weight.shape[1])
    else:
        widths = (module.in_features, module.out_features)
    return Site(path, "linear", layer, *widths, bias_of(module) is not None)


def _walk_norms(trunk: nn.Module) -> Iterator[Site]:
    for path, module in trunk.named_modules():
        if is_norm(module):
            width = int(module.weight.shape[0])
            yield Site(path, "norm", layer_of(path), width, width, bias_of(module) is not None)


def embedding_sites(trunk: nn.Module) -> Iterator[Site]:
    """Tables of tokens, positions and types: no table that attention looks distances up in.

    Left out are tables that make their own positions (BART, Marian): what they look up is not what
    they are given.

    Args:
        trunk: The part of a base that gives hidden states.

    Yields:
        The sites in the order of the modules; the input width is the number of rows.
    """
    tables = [
        (path, module)
        for path, module in trunk.named_modules()
        if isinstance(module, nn.Embedding)
        and layer_of(path) is None
        and path.rpartition(".")[2] not in _DISTANCES
    ]
    for path, module in tables:
        copies = sum(_values_of(other) is _values_of(module) for _, other in tables)
        makes_positions = type(module).__name__.endswith("PositionalEmbedding")
        # T5 keeps its table once more at the top, where no forward looks anything up.
        if (copies == 1 or "." in path) and not makes_positions:
            yield Site(path, "embedding", None, module.num_embeddings, module.embedding_dim)


def split_path(path: str) -> tuple[str, str]:
    """Module and place of a site.

    Args:
        path: Path of a site.

    Returns:
        Name of the module, and ``RESIDUAL``, ``ATTENTION`` or nothing.
    """
    module, at, place = path.partition("@")
    return module, at + place


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a linear.

    Args:
        module: ``nn.Linear`` or ``Conv1D``.

    Returns:
        (out, in) in the type of the base; a view.
    """
    weight: Tensor = module.weight  # type: ignore[assignment]
    # Conv1D keeps its weight as (in, out)
    return weight.T if isinstance(module, Conv1D) else weight


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias of a linear or a norm.

    Args:
        module: The module.

    Returns:
        (out,), or None when it has none.
    """
    return getattr(module, "bias", None)


def choose_layers(sites: Sequence[Site], layers: LayerChoice, *, count: Depths) -> list[Site]:
    """The sites of the chosen layers, of each stack alike.

    With two stacks of different depth the last n are those of each of them, and the shallower one
    gives what it has.

    Args:
        sites: Sites of a method.
        layers: The choice; ``all`` takes what stands outside the layers too.
        count: Number of layers of each stack.

    Returns:
        The sites in the same order, at least one.

    Raises:
        ConfigError: A layer that the base does not have, or nothing is left (``no_such_site``).
    """
    if layers == "all":
        chosen = list(sites)
    else:
        deepest = max(count.values(), default=0)
        missing = sorted(_numbers(layers, deepest) - set(range(deepest)))
        if missing:
            raise ConfigError(
                f"layers {missing} do not exist; this base has layers 0 to {deepest - 1}",
                code="no_such_site",
                param="method.layers",
            )
        numbers = {stack: _numbers(layers, depth) for stack, depth in count.items()}
        chosen = [site for site in sites if site.layer in numbers.get(_stack_of(site.path), ())]
    if not chosen:
        raise ConfigError(
            f"layers {layers} match nothing; this base has layers 0 to "
            f"{max(count.values(), default=0) - 1}",
            code="no_such_site",
            param="method.layers",
        )
    return chosen


def choose_targets(
    sites: Sequence[Site],
    targets: Targets,
    *,
    param: str = "method.targets",
    among: str = "linear",
) -> list[Site]:
    """The sites whose name ends in one of the targets.

    Args:
        sites: Linears.
        targets: Endings, or ``all-linear``.
        param: The field that names them.
        among: What the sites are, in words.

    Returns:
        The sites in the same order.

    Raises:
        ConfigError: A target that matches nothing (``no_such_site``).
    """
    if targets == "all-linear":
        return list(sites)
    for target in targets:
        if not any(_ends_in(site.path, target) for site in sites):
            names = sorted({site.path.rsplit(".", 1)[-1] for site in sites})
            raise ConfigError(
                f"no {among} is called {target!r}; there are {', '.join(names)}",
                code="no_such_site",
                param=param,
            )
    return [site for site in sites if any(_ends_in(site.path, target) for target in targets)]


def count_layers(trunk: nn.Module) -> Depths:
    """Number of layers of each stack.

    Args:
        trunk: The part of a base that gives hidden states.

    Returns:
        One more than the highest layer number of a stack, by its path; most bases have one stack.
    """
    found: dict[str, int] = {}
    for site in linear_sites(trunk):
        if site.layer is not None:
            stack = _stack_of(site.path)
            found[stack] = max(found.get(stack, 0), site.layer + 1)
    return found


def layer_of(path: str) -> int | None:
    """Number of the layer that a module belongs to.

    Args:
        path: Name of the module inside the trunk, or path of a site.

    Returns:
        The number from 0; None outside the stack of layers.
    """
    found = _LAYER.search(f"{split_path(path)[0]}.")
    return None if found is None else int(found.group(1))


def layer_paths(trunk: nn.Module) -> list[str]:
    """Names of the layers of a trunk that has one stack of them.

    Args:
        trunk: The part of a base that gives hidden states.

    Returns:
        In the order of their numbers, which begin at 0; empty where there is no stack, or several
        (an encoder and a decoder).
    """
    stacks = stack_paths(trunk)
    return stacks[0] if len(stacks) == 1 else []


def stack_paths(trunk: nn.Module) -> list[list[str]]:
    """Names of the layers of each stack.

    Args:
        trunk: The part of a base that gives hidden states.

    Returns:
        Stacks in the order of the modules, an encoder before its decoder; in each the layers in the
        order of their numbers. Stacks whose numbers do not begin at 0 are left out.
    """
    found: dict[str, dict[str, None]] = {}
    for site in linear_sites(trunk):
        match = _LAYER.search(site.path)
        if match is not None:
            own = found.setdefault(site.path[: match.start(1) - 1], {})
            own[site.path[: match.end(1)]] = None
    return [
        list(paths)
        for stem, paths in found.items()
        if list(paths) == [f"{stem}.{i}" for i in range(len(paths))]
    ]


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a LayerNorm or an RMSNorm with a gain.

    Args:
        module: Any module.

    Returns:
        True for those of torch and those of transformers, which have no common class.
    """
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return module.weight is not None
    return type(module).__name__.endswith(("RMSNorm", "T5LayerNorm")) and hasattr(module, "weight")


def _values_of(table: nn.Embedding) -> Tensor:
    """What a table looks up in, however it keeps its values; shared by those that look in it."""
    return next(iter((*table.parameters(recurse=False), *table.buffers(recurse=False))))


def _numbers(layers: tuple[int, ...] | FirstLayers | LastLayers, count: int) -> set[int]:
    if isinstance(layers, FirstLayers):
        return set(range(layers.first))
    if isinstance(layers, LastLayers):
        return set(range(count - layers.last, count))
    return set(layers)


def _stack_of(path: str) -> str:
    found = _LAYER.search(f"{split_path(path)[0]}.")
    return "" if found is None else path[: found.start(1) - 1]


def _ends_in(path: str, target: str) -> bool:
    return path == target or path.endswith(f".{target}")
