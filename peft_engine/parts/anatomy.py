"""What the modules of a layer are for: keys, values, the ends of attention and FFN, their norms."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from peft_engine.errors import ConfigError
from peft_engine.parts.attention import reaches_attention
from peft_engine.parts.layer_names import Family, ends_in_any, family_of, find_family
from peft_engine.parts.sites import ATTENTION, Site, linear_sites


@dataclass(frozen=True)
class Sublayer:
    """Attention or FFN of one layer.

    Attributes:
        output: The linear whose output is added to the residual stream.
        norm: Path of the norm of that sum where the base is post-norm, else None.
        block: Path of the module that takes the sub-layer's input and gives its output; with
            ``RESIDUAL`` where a module takes the residual stream as its second argument. None
            where there is no such module.
    """

    output: Site
    norm: str | None
    block: str | None


@dataclass(frozen=True)
class Scaled:
    """Features that (IA)³ scales.

    Attributes:
        site: The linear.
        side: Its input or its output.
        width: How many features, the last ones of that side.
    """

    site: Site
    side: Literal["input", "output"]
    width: int


@dataclass(frozen=True)
class Inner:
    """The inner features of one FFN.

    Attributes:
        end: The linear that reads them; its input width is their number.
        makers: Paths of the linears that make them: one, or a gate and what it is multiplied with.
    """

    end: Site
    makers: tuple[str, ...]


@dataclass(frozen=True)
class HeadGroups:
    """The heads of one self-attention: those that share keys and values stand together.

    Attributes:
        path: The attention module.
        end: The linear that reads what the heads give, one head after another.
        makers: Paths of the linears of queries, keys and values; one path where one linear makes
            all three, in this order.
        heads: Number of query heads.
        groups: Number of heads of keys and values.
    """

    path: str
    end: Site
    makers: tuple[str, ...]
    heads: int
    groups: int


def scaled_features(trunk: nn.Module) -> Sequence[Scaled]:
    """Keys, values and inner activations of every layer.

    Args:
        trunk: The part of a base that gives hidden states.

    Returns:
        In the order of the modules, each linear once.

    Raises:
        ConfigError: A family of bases whose names are not in the table (``no_such_site``).
    """  # noqa: DOC502  raised below
    family = family_of(trunk)
    found: list[Scaled] = []
    for site in linear_sites(trunk):
        if ends_in_any(site.path, family.keys + family.values):
            found.append(Scaled(site, "output", site.out_features))
        elif family.fused is not None and ends_in_any(site.path, (family.fused,)):
            found.append(Scaled(site, "output", site.out_features * 2 // 3))
        elif _is_ffn_end(site, family):
            found.append(Scaled(site, "input", site.in_features))
    return found


def attention_ends(trunk: nn.Module) -> Sequence[Sublayer]:
    """The attention sub-layers.

    Args:
        trunk: The part of a base that gives hidden states.

    Returns:
        In the order of the modules.

    Raises:
        ConfigError: A family of bases whose names are not in the table (``no_such_site``).
    """  # noqa: DOC502  raised below
    family = family_of(trunk)
    return [
        Sublayer(site, _beside(site, family.attention, family.attention_norm), None)
        for site in linear_sites(trunk)
        if ends_in_any(site.path, family.attention)
    ]


def values_of_attention(trunk: nn.Module) -> Mapping[str, str]:
    """The linear that makes the values of each attention, by the linear that ends it.

    Args:
        trunk: The part of a base that gives hidden states.

    Returns:
        Path by path; empty where one linear makes queries, keys and values.

    Raises:
        ConfigError: A family of bases whose names are not in the table (``no_such_site``).
    """  # noqa: DOC502  raised below
    family = family_of(trunk)
    return {
        site.path: site.path.removesuffix(output) + value
        for value, output in zip(family.values, family.attention, strict=False)
        for site in linear_sites(trunk)
        if ends_in_any(site.path, (output,))
    }


def self_attentions(trunk: nn.Module) -> Sequence[Site]:
    """The self-attention of every layer, where queries meet keys; no cross-attention.

    Args:
        trunk: The part of a base that gives hidden states.

    Returns:
        In the order of the modules; widths and heads are those of queries, and of keys.

    Raises:
        ConfigError: A family of bases whose names are not in the table, or one that computes
            attention where no method can reach it (``no_such_site``).
    """
    family = family_of(trunk)
    # The names of a table's line begin with those of self-attention.
    name = family.fused or family.keys[0]
    parts = 1 if family.fused is None else 3
    queries = {
        site.layer: site.in_features
        for site in linear_sites(trunk)
        if ends_in_any(site.path, family.attention[:1])
    }
    found: list[Site] = []
    for site in linear_sites(trunk):
        if not ends_in_any(site.path, (name,)):
            continue
        path = site.path.rpartition(".")[0]
        module = trunk.get_submodule(path)
        if not reaches_attention(module):
            raise ConfigError(
                f"{type(module).__name__} computes attention by itself, where a prefix cannot "
                "reach it; use another method, such as lora",
                code="no_such_site",
                param="method",
            )
        widths = queries[site.layer], site.out_features // parts
        found.append(
            Site(path + ATTENTION, "attention", site.layer, *widths, heads=_heads_of(module))
        )
    return found


def ffn_ends(trunk: nn.Module) -> Sequence[Sublayer]:
    """The FFN sub-layers.

    Args:
        trunk: The part of a base that gives hidden states.

    Returns:
        In the order of the modules.

    Raises:
        ConfigError: A family of bases whose names are not in the table (``no_such_site``).
    """  # noqa: DOC502  raised below
    family = family_of(trunk)
    names = (family.ffn,)
    return [
        Sublayer(
            site, _beside(site, names, family.ffn_norm), _beside(site, names, family.ffn_block)
        )
        for site in linear_sites(trunk)
        if _is_ffn_end(site, family)
    ]


def ffn_inners(trunk: nn.Module) -> Sequence[Inner]:
    """The inner features of every FFN.

    Args:
        trunk: The part of a base that gives hidden states.

    Returns:
        In the order of the modules.

    Raises:
        ConfigError: A family of bases whose names are not in the table (``no_such_site``).
    """  # noqa: DOC502  raised below
    family = family_of(trunk)
    there = {site.path for site in linear_sites(trunk)}
    found: list[Inner] = []
    for sublayer in ffn_ends(trunk):
        stem = sublayer.output.path.removesuffix(family.ffn)
        makers = tuple(stem + name for name in family.ffn_makers if stem + name in there)
        found.append(Inner(sublayer.output, makers))
    return found


def head_groups(trunk: nn.Module) -> Sequence[HeadGroups]:
    """The heads of every self-attention.

    Args:
        trunk: The part of a base that gives hidden states.

    Returns:
        In the order of the modules.

    Raises:
        ConfigError: A family of bases whose names are not in the table, or whose heads depend on
            more than the widths of linears (``no_such_site``).
    """
    family = family_of(trunk)
    if family.queries is None:
        raise ConfigError(
            f"heads of {type(trunk).__name__} cannot be taken apart; use the pattern ffn or layers",
            code="no_such_site",
            param="base.pruning.pattern",
        )
    sites = {site.path: site for site in linear_sites(trunk)}
    found: list[HeadGroups] = []
    for attention in attention_ends(trunk):
        stem = attention.output.path.removesuffix(family.attention[0])
        names = family.keys[:1] + family.values[:1] if family.fused is None else ()
        module = stem + family.queries.rpartition(".")[0]
        heads = _heads_of(trunk.get_submodule(module))
        keys = heads
        if family.fused is None:
            keys = heads * sites[stem + names[0]].out_features // attention.output.in_features
        makers = tuple(stem + name for name in (family.queries, *names))
        found.append(HeadGroups(module, attention.output, makers, heads, keys))
    return found


def idle_biases(trunk: nn.Module, learning: Collection[str]) -> frozenset[str]:
    """Linears whose bias cannot do anything that other biases do not do already.

    A bias of the keys adds the same number to every score of a query, and softmax takes it away. A
    bias of the values passes through attention as it is, since its weights sum to 1, and is a part
    of the bias of the linear behind it.

    Args:
        trunk: The part of a base that gives hidden states.
        learning: Paths of the linears whose biases are to learn.

    Returns:
        Paths among ``learning``; none for a family of bases whose names are not in the table.
    """
    family = find_family(trunk)
    if family is None:
        return frozenset()
    keys = family.keys if family.keys_shift_alike else ()
    idle = {path for path in learning if ends_in_any(path, keys)}
    for value, output in zip(family.values, family.attention, strict=False):
        own = {path for path in learning if ends_in_any(path, (value,))}
        idle |= {path for path in own if path.removesuffix(value) + output in learning}
    return frozenset(idle)


def gated_makers(trunk: nn.Module) -> frozenset[str]:
    """What a gate is multiplied with, in every gated FFN.

    Args:
        trunk: The part of a base that gives hidden states.

    Returns:
        Paths of linears; none for a family of bases whose names are not in the table.
    """
    if find_family(trunk) is None:
        return frozenset()
    return frozenset(path for inner in ffn_inners(trunk) for path in inner.makers[1:])


def _heads_of(module: nn.Module) -> int:
    """Number of query heads of an attention module, under whichever name its family has for it.

    Raises:
        ConfigError: Under none of them.
    """
    for owner in (module, module.config):
        for name in ("num_attention_heads", "num_heads", "n_heads"):
            found = getattr(owner, name, None)
            if found is not None:
                return int(found)
    raise ConfigError(
        f"{type(module).__name__} does not say how many heads it has",
        code="no_such_site",
        param="method",
    )


def _is_ffn_end(site: Site, family: Family) -> bool:
    # BERT's `attention.output.dense` ends in the name of its FFN, `output.dense`, too
    return ends_in_any(site.path, (family.ffn,)) and not ends_in_any(site.path, family.attention)


def _beside(site: Site, endings: Sequence[str], name: str | None) -> str | None:
    """``name`` in the layer of a linear whose path ends in one of ``endings``."""
    if name is None:
        return None
    ending = next(e for e in endings if ends_in_any(site.path, (e,)))
    return site.path.removesuffix(ending) + name
