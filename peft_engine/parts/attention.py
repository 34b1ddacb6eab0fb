"""Attention as a site: what stands between the projections of an attention module and its output.

Queries, keys and values meet there after position rotation and after the cache, so that a method
needs no change of masks, caches or positions. transformers looks the function up by a name in the
module's configuration; a routed module is given a configuration of its own with our name, and ours
calls the function that the base had.

Not for families that compute attention inside the module itself (DeBERTa, MPNet).
"""

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

# Legend of axes: B rows, H heads, G heads of keys and values, Q queries, K keys, P prefix, d width
# of a head.

_NAME = "tunery"
"""Under which transformers finds our function; one for all modules, which keep what it calls."""

_FUNCTION = "_tunery_attention"

Compute = Callable[..., tuple[Tensor, Tensor | None]]
"""``(module, query, key, value, mask, **options)`` to (B, Q, H, d) and perhaps the shares."""


@dataclass(frozen=True)
class AttentionCall:
    """One attention that a base computes.

    Attributes:
        module: The attention module; only read.
        query: (B, H, Q, d), rotated where the base rotates.
        key: (B, G, K, d), those of the cache before those of this forward.
        value: (B, G, K, d).
        mask: (B or 1, 1 or H, Q, K): true or zero where a query looks. None: everywhere, or
            at what is not later where ``masks_itself`` says so.
        options: What the base gives besides: ``scaling``, ``position_bias``, …
        compute: The base's own function.
        masks_itself: Whether the function is causal by itself where there is no mask.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    options: Mapping[str, Any]
    compute: Compute
    masks_itself: bool

    @property
    def scaling(self) -> float:
        """Factor on the products of queries and keys."""
        given = self.options.get("scaling")
        return float(self.query.shape[-1] ** -0.5 if given is None else given)

    def with_prefix(self, rows: slice, keys: Tensor, values: Tensor) -> Tensor:
        """What some rows get when they look at a prefix and at their tokens in one softmax.

        Args:
            rows: The rows.
            keys: (G, P, d) before every key; not rotated.
            values: (G, P, d).

        Returns:
            (rows, Q, H, d), by the base's own function.
        """
        key, value = (
            torch.cat([prefix.to(own.dtype).expand(len(own), -1, -1, -1), own], dim=2)
            for prefix, own in ((keys, self.key[rows]), (values, self.value[rows]))
        )  # (rows, G, P + K, d)
        length = keys.shape[1]
        options = dict(self.options)
        bias = options.get("position_bias")
        if bias is not None:
            # No distance is defined to a prefix.
            options["position_bias"] = _pad(_rows_of(bias, rows), length, 0.0)
        mask = self._explicit_mask()
        if mask is not None:
            mask = _pad(_rows_of(mask, rows), length, True if mask.dtype == torch.bool else 0.0)
        return self.compute(self.module, self.query[rows], key, value, mask, **options)[0]

    def _explicit_mask(self) -> Tensor | None:
        """The mask, or (1, 1, Q, K) where the function would have made it from the shapes."""
        queries, keys = self.query.shape[2], self.key.shape[2]
        causal = self.options.get("is_causal")
        causal = getattr(self.module, "is_causal", True) if causal is None else causal
        if self.mask is not None or queries == 1 or not (causal and self.masks_itself):
            return self.mask
        whole = torch.ones(queries, keys, dtype=torch.bool, device=self.query.device)
        return whole.tril().view(1, 1, queries, keys)


Change = Callable[[AttentionCall, Tensor], Tensor]
"""From a call and what the base made of it, (B, Q, H, d), to what takes its place."""


def reaches_attention(module: nn.Module) -> bool:
    """Whether an attention module looks its function up where ours can be found.

    Args:
        module: The module.

    Returns:
        False for families that compute attention inside the module.
    """
    config = getattr(module, "config", None)
    if config is None or not hasattr(_modeling(module), "ALL_ATTENTION_FUNCTIONS"):
        return False
    # GPT-2 has a second way, which it takes by the very name that would be replaced.
    upcasts = getattr(module, "reorder_and_upcast_attn", False)
    return not (upcasts and config._attn_implementation == "eager")


def route_attention(module: nn.Module, change: Change) -> None:
    """Let ``change`` see every attention that a module computes from now on.

    Args:
        module: A module that ``reaches_attention``.
        change: Called after the base's function; gives its second argument back to change nothing.
    """
    name = str(module.config._attn_implementation)  # type: ignore[union-attr]
    compute = _function_of(module, name)
    masks_itself = getattr(compute, "masks_itself", name != "eager")

    def routed(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        y, shares = compute(module, query, key, value, mask, **options)
        call = AttentionCall(module, query, key, value, mask, options, compute, masks_itself)
        return change(call, y), shares

    routed.masks_itself = masks_itself  # type: ignore[attr-defined]
    setattr(module, _FUNCTION, routed)
    if name != _NAME:
        AttentionInterface.register(_NAME, _compute_routed)
        # Masks are made by the name in the base's configuration, which stays as it is.
        config = copy.deepcopy(module.config)
        config._attn_implementation = _NAME  # type: ignore[union-attr]
        module.config = config


def _compute_routed(module: nn.Module, *args: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    found: tuple[Tensor, Tensor | None] = getattr(module, _FUNCTION)(module, *args, **options)
    return found


def _function_of(module: nn.Module, name: str) -> Compute:
    if name == _NAME:
        routed: Compute = getattr(module, _FUNCTION)
        return routed
    modeling = _modeling(module)
    default = getattr(modeling, "eager_attention_forward", None)
    found: Compute = modeling.ALL_ATTENTION_FUNCTIONS.get_interface(name, default)
    return found


def _modeling(module: nn.Module) -> Any:
    return sys.modules[type(module).__module__]


def _rows_of(values: Tensor, rows: slice) -> Tensor:
    return values if values.shape[0] == 1 else values[rows]


def _pad(values: Tensor, length: int, fill: float | bool) -> Tensor:
    """(…, Q, P + K) with ``fill`` for the prefix."""
    return nn.functional.pad(values, (length, 0), value=fill)
