"""Attention of a base that can be asked for packed rows or for several batches at once.

Otherwise it is the base's own.

transformers looks attention up by a name in the module's configuration. Once a base is loaded, its
attention modules are given a configuration of their own with our name, and what stands under it
calls the function that the base had. The base's own configuration, by which masks are made, stays.
"""

import copy
import functools
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import create_bidirectional_mask

from peft_engine.parts.attention import reaches_attention
from peft_engine.parts.joining import Joint
from peft_engine.parts.packing import Packing, pack

# Legend of axes: B rows, T tokens, N nodes, P places of several batches, H heads, G heads of keys
# and values, d width of a head, D width of the hidden state.

Implementation = Literal["sdpa", "eager"]

_ROUNDING = {torch.float32: 1e-2, torch.bfloat16: 0.05}
"""Largest difference of a token's hidden state, relative to its length, by type of the base:
kernels round otherwise for other numbers of tokens. One that sees another row is further off."""


def install_attention(trunk: nn.Module, implementation: Implementation) -> bool:
    """Let the attention modules of a base take a ``packing`` or a ``joint``.

    Args:
        trunk: The part of the base that gives hidden states.
        implementation: The attention that the base was loaded with.

    Returns:
        Whether they can; False for families that compute attention in a way of their own, or look
        at a window of the tokens only.
    """
    name = f"tunery-{implementation}"
    compute = functools.partial(_attend, implementation)
    # Whether the function is causal by itself where it is given no mask.
    compute.masks_itself = implementation != "eager"  # type: ignore[attr-defined]
    AttentionInterface.register(name, compute)
    modules = [m for m in trunk.modules() if hasattr(m, "is_causal") and reaches_attention(m)]
    configs = {id(module.config): copy.deepcopy(module.config) for module in modules}
    for module in modules:
        module.config = configs[id(module.config)]
        module.config._attn_implementation = name  # type: ignore[union-attr]
    return bool(modules) and not _has_windows(trunk)


def packed_states(trunk: nn.Module, packing: Packing) -> Tensor:
    """Hidden states of packed rows, laid out as the padded rows that they stand for.

    Args:
        trunk: The part of a base that ``packs_exactly``.
        packing: B rows.

    Returns:
        (B, T, D); what stands at padding has no meaning.
    """
    weight = next(trunk.parameters())
    length = len(packing.nodes) // packing.rows
    output = trunk(
        input_ids=packing.input_ids,
        position_ids=packing.positions,
        # A mask with four axes is passed on as it is; without one, a mask of N x N would be made.
        attention_mask=_causal_mask(length, dtype=weight.dtype, device=weight.device),
        packing=packing,
        use_cache=False,
    )
    return packing.spread(output.last_hidden_state[0])


def joint_states(trunk: nn.Module, joint: Joint, *, causal: bool, first_position: int) -> Tensor:
    """Hidden states of several batches.

    Args:
        trunk: The part of a base for which ``install_attention`` returned True.
        joint: The batches.
        causal: Whether a token looks at earlier ones alone.
        first_position: Number that the base gives to the first place of a row.

    Returns:
        (P, 1, D).
    """
    weight = next(trunk.parameters())
    joint.masks[:] = [
        _causal_mask(strip.mask.shape[1], dtype=weight.dtype, device=weight.device)
        if causal
        else _padding_mask(trunk, strip.mask, dtype=weight.dtype)
        for strip in joint.strips
    ]
    options: dict[str, Any] = {"use_cache": False} if causal else {}
    if joint.type_ids is not None:
        options["token_type_ids"] = joint.type_ids
    with _without_pooler(trunk):
        output = trunk(
            input_ids=joint.input_ids,
            position_ids=joint.positions + first_position,
            # Passed on as it is, and looked at by nobody: every strip has its own.
            attention_mask=weight.new_zeros(1, 1, 1, 1),
            joint=joint,
            **options,
        )
    hidden: Tensor = output.last_hidden_state
    return hidden


@contextmanager
def _without_pooler(trunk: nn.Module) -> Iterator[None]:
    """Leave out BERT's pooler: nobody reads it, and it would take every place for a first token."""
    pooler = getattr(trunk, "pooler", None)
    if not isinstance(pooler, nn.Module):
        yield
        return
    pooler.forward = lambda hidden: hidden
    try:
        yield
    finally:
        del pooler.forward  # the method of its class is there again


def _padding_mask(trunk: nn.Module, mask: Tensor, *, dtype: torch.dtype) -> Tensor | None:
    """The mask that transformers makes of a (B, T) mask for an encoder."""
    shaped = torch.empty(*mask.shape, 1, dtype=dtype, device=mask.device)
    found = create_bidirectional_mask(
        config=trunk.config,  # type: ignore[arg-type]
        inputs_embeds=shaped,
        attention_mask=mask,
    )
    return cast(Tensor | None, found)


def _has_windows(trunk: nn.Module) -> bool:
    config: Any = trunk.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return kinds != {"full_attention"} or getattr(config, "sliding_window", None) is not None


def packs_exactly(trunk: nn.Module) -> bool:
    """Whether three short rows with a common prefix come out as they do alone.

    Args:
        trunk: The part of a causal base, its attention installed.

    Returns:
        False for families whose rows cannot be packed.
    """
    rows = [[1, 2, 3, 4, 5], [1, 2, 3, 6], [1, 2, 5, 4, 3, 2]]
    weight = next(trunk.parameters())
    packing = pack(rows, share=True, device=weight.device)
    allowed = _ROUNDING[weight.dtype]
    with torch.no_grad():
        try:
            found = packed_states(trunk, packing)
        except TypeError:  # a family that passes nothing on to its attention
            return False
        for row, states in zip(rows, found, strict=True):
            ids = torch.tensor([row], device=states.device)
            alone = trunk(input_ids=ids, use_cache=False).last_hidden_state[0].float()  # (T, D)
            difference = (states[: len(row)].float() - alone).norm(dim=-1)
            if not bool((difference <= allowed * alone.norm(dim=-1)).all()):
                return False
    return True


def _causal_mask(tokens: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(1, 1, T, T) to be added to the scores of right-padded rows: 0 where a query looks."""
    least = torch.finfo(dtype).min
    mask = torch.full((tokens, tokens), least, dtype=dtype, device=device).triu(1)
    return mask.view(1, 1, tokens, tokens)


def _attend(
    implementation: Implementation,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    packing: Packing | None = None,
    joint: Joint | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """The base's own attention, over rows where it is given nodes or places that stand for them.

    Args:
        implementation: Name of the base's own.
        module: The attention module.
        query: (B, H, T, d); of packed rows (1, H, N, d), of several batches (P, H, 1, d).
        key: (B, G, T, d); of packed rows (1, G, N, d), of several batches (P, G, 1, d).
        value: Like ``key``.
        mask: Of the base's own; for packed rows the causal mask of the padded ones.
        packing: The packing, if rows are packed.
        joint: The batches, if there are several.
        options: What the base gives besides.

    Returns:
        (B, T, H, d), (1, N, H, d) or (P, 1, H, d), and None or the shares.
    """
    if joint is not None:
        return _attend_each(implementation, module, (query, key, value), joint, options), None
    modeling = sys.modules[type(module).__module__]
    default = getattr(modeling, "eager_attention_forward", None)
    compute = modeling.ALL_ATTENTION_FUNCTIONS.get_interface(implementation, default)
    if packing is None:
        own: tuple[Tensor, Tensor | None] = compute(module, query, key, value, mask, **options)
        return own
    # (1, H, N, d) to (B, H, T, d)
    query, key, value = (
        packing.spread(states[0].transpose(0, 1)).transpose(1, 2) for states in (query, key, value)
    )
    # Padding stands on the right, where no token of its row looks.
    y, _ = compute(
        module, query, key, value, mask if implementation == "eager" else None, **options
    )  # (B, T, H, d)
    return packing.gather(y).unsqueeze(0), None


def _attend_each(
    implementation: Implementation,
    module: nn.Module,
    states: tuple[Tensor, Tensor, Tensor],
    joint: Joint,
    options: Mapping[str, Any],
) -> Tensor:
    """(P, 1, H, d) from queries, keys and values of (P, H or G, 1, d): each batch by itself."""
    # (P, H, 1, d) to (B, T, H, d) of each strip
    own = zip(*(joint.parts(values.transpose(1, 2)) for values in states), strict=True)
    found = []
    for strip, mask, parts in zip(joint.strips, joint.masks, own, strict=True):
        explicit = mask if implementation == "eager" or not _is_causal(module) else None
        query, key, value = (part.transpose(1, 2) for part in parts)  # (B, H, T, d)
        packing = strip.packing
        y, _ = _attend(
            implementation,
            module,
            query,
            key,
            value,
            mask if packing is not None else explicit,
            packing=packing,
            **options,
        )  # (B, T, H, d)
        found.append(y.reshape(-1, 1, *y.shape[2:]))
    return torch.cat(found)


def _is_causal(module: nn.Module) -> bool:
    return bool(getattr(module, "is_causal", False))
