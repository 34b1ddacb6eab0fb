"""Modules that do not see a batch row by row, so that no delta can act there on its own rows.

OPT puts all tokens of a batch in one axis before its FFN. DeBERTa sends a table of distances, which
belongs to no row, through the linears of queries and keys.
"""

import functools
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from peft_engine.errors import ConfigError
from peft_engine.parts.sites import Site, linear_sites, norm_sites, outer_linear_sites, split_path
from peft_engine.parts.stacks import TwoStacks

# Legend of axes: B rows, T tokens, D width.

_MIXED: WeakKeyDictionary[nn.Module, frozenset[str]] = WeakKeyDictionary()
"""What ``find_mixed`` found, by trunk."""

_PROBE = ((1, 2, 3), (2, 1, 3))


def find_mixed(trunk: nn.Module) -> frozenset[str]:
    """Send two short rows through a trunk and keep which linears and norms do not see them as such.

    Args:
        trunk: The part of a base that gives hidden states, as it was loaded.

    Returns:
        Paths of modules that were given anything but (B, …, D) with B as in the batch.
    """
    mixed: set[str] = set()

    def look(path: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        given: Tensor | None = next(iter(inputs), None)
        if given is not None and (given.dim() < 3 or given.shape[0] != len(_PROBE)):
            mixed.add(path)

    sites = (*linear_sites(trunk), *outer_linear_sites(trunk), *norm_sites(trunk))
    paths = [site.path for site in sites]
    handles = [
        trunk.get_submodule(path).register_forward_pre_hook(functools.partial(look, path))
        for path in paths
    ]
    try:
        _forward(trunk)
    finally:
        for handle in handles:
            handle.remove()
    _MIXED[trunk] = frozenset(mixed)
    return _MIXED[trunk]


def check_rows(trunk: nn.Module, sites: Iterable[Site]) -> None:
    """Refuse sites at which the rows of a batch cannot be told apart.

    Args:
        trunk: The part of a base that gives hidden states.
        sites: Where methods are to act; any will do if nobody looked by ``find_mixed``.

    Raises:
        ConfigError: A site is among what ``find_mixed`` found (``base_unsupported``).
    """
    mixed = _MIXED.get(trunk, frozenset())
    found = [site.path for site in sites if split_path(site.path)[0] in mixed]
    if found:
        raise ConfigError(
            f"{type(trunk).__name__} does not compute {found[0]!r} row by row ({len(found)} such "
            "modules), so that no adapter can act there; use another base model, or a method, "
            "targets or layers without them",
            code="base_unsupported",
            param="method",
        )


@torch.no_grad()
def _forward(trunk: nn.Module) -> None:
    ids = torch.tensor(_PROBE, device=next(trunk.parameters()).device)  # (B, T)
    mask = torch.ones_like(ids)
    if isinstance(trunk, TwoStacks):
        prompt = trunk.encode(input_ids=ids, attention_mask=mask)
        trunk.decode(ids, prompt=prompt, prompt_mask=mask, use_cache=False)
    else:
        trunk(input_ids=ids, attention_mask=mask)
