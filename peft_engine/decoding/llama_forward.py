"""The fast path: one forward of a llama-like base over slots, with the deltas of its rows."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu

from peft_engine.decoding.changes import (
    Changes,
    NoChanges,
    PackedLora,
    RowChanges,
    is_known,
    is_lora_only,
)
from peft_engine.decoding.forward import Part, Stages
from peft_engine.decoding.layout import Layout
from peft_engine.decoding.llama import Fused, Layer, Llama, turn
from peft_engine.decoding.lora_stack import LoraStack
from peft_engine.decoding.slots import KeyValueSlots
from peft_engine.parts.attention import AttentionCall
from peft_engine.parts.sites import ATTENTION

# Legend of axes: B rows, N tokens, D width, H heads, G heads of keys and values, d width of a head,
# K tokens that are looked at, V vocabulary, F width of the FFN.


class LlamaForward:
    """A llama-like base with slots.

    Args:
        llama: The base, laid out.
        slots: Keys and values of its rows.
    """

    def __init__(self, llama: Llama, slots: KeyValueSlots) -> None:
        self._llama = llama
        self._slots = slots
        self._like = llama.norm.weight  # of the type and on the device of the base
        self._stacks = self._make_stacks()
        # Those of the rows that write, which are the same until a row joins or leaves.
        self._kept: tuple[Stages, Changes] | None = None

    @property
    def kernel(self) -> str:
        """By which products are computed."""
        return self._llama.kernel

    @property
    def layout_bytes(self) -> int:
        """Memory of the weights as they are laid out."""
        return self._llama.bytes

    def knows(self, parts: Sequence[Part], stages: Stages) -> bool:
        """Whether this forward can be computed here.

        Args:
            parts: B rows.
            stages: What their deltas do.

        Returns:
            False where a delta acts at a place that exists in the base's own modules only.
        """
        kept = self._kept
        one_token = all(len(part.ids) == 1 for part in parts)
        if one_token and kept is not None and kept[0] is stages:
            return True
        return is_known(stages, self._llama, one_token=one_token)

    def hidden(self, parts: Sequence[Part], stages: Stages) -> Tensor:
        """Read tokens.

        Args:
            parts: B rows.
            stages: What their deltas do; ``knows`` is true of them.

        Returns:
            (B, D) hidden state of the last token of each part.
        """
        llama = self._llama
        packed = is_lora_only(stages, llama) if stages else True
        layout = Layout.of(parts, packed=packed, device=self._like.device)
        changes = self._changes(layout, stages)
        if changes.order is not None:
            layout = replace(layout, order=changes.order)
        self._slots.reserve(slots=max(part.slot for part in parts) + 1, tokens=layout.longest_end)
        rotation = llama.rotary.at(layout.positions, longest=layout.longest_end)
        ids = layout.ids
        h = llama.embedding.forward(ids)  # (N, D); hooks would act here as well
        h = changes.at("embed_tokens", llama.embedding, ids, h)
        mask = None
        if layout.is_one_token:
            groups = llama.key_heads
            queries = llama.heads // groups
            tokens = self._slots.tokens_to_read(layout.longest_end, like=h)
            mask = layout.mask(h.dtype, groups=groups, queries=queries, tokens=tokens)
        for number, layer in enumerate(llama.layers):
            h = self._attend(number, layer, h, layout, rotation, mask, changes, stages)
            h = self._feed(layer, h, changes)
        if layout.last is not None:
            h = h[layout.last]
        if layout.back is not None:
            h = h.index_select(0, layout.back)
        return changes.at(llama.norm.path, llama.norm.module, h, llama.norm(h))

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token.

        Args:
            hidden: (N, D) hidden states.

        Returns:
            (N, V) fp32.
        """
        return self._llama.head(hidden).float()

    def release(self) -> None:
        """Let go of what was made of deltas."""
        self._kept = None
        self._stacks = self._make_stacks()

    def _make_stacks(self) -> dict[tuple[str, ...], LoraStack]:
        return {
            fused.paths: LoraStack(fused, self._like)
            for layer in self._llama.layers
            for fused in (layer.qkv, layer.o, layer.gate_up, layer.down)
        }

    def _changes(self, layout: Layout, stages: Stages) -> Changes:
        if not stages:
            return NoChanges()
        rows = len(layout.parts)
        if not layout.is_one_token:
            if is_lora_only(stages, self._llama):
                return PackedLora(stages, _token_ends(layout))
            return RowChanges(stages, self._llama, rows=rows, stacks={})
        if self._kept is None or self._kept[0] is not stages:
            # Forgotten first: what is kept no longer fits the stacks once they begin to change.
            self._kept = None
            changes = RowChanges(stages, self._llama, rows=rows, stacks=self._stacks)
            self._kept = (stages, changes)
        return self._kept[1]

    def _attend(
        self,
        number: int,
        layer: Layer,
        h: Tensor,
        layout: Layout,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None,
        changes: Changes,
        stages: Stages,
    ) -> Tensor:
        """(N, D) with attention added."""
        llama = self._llama
        x = layer.first_norm(h)
        x = changes.at(layer.first_norm.path, layer.first_norm.module, h, x)
        y = layer.qkv.product(x)  # (N, (H + 2G) · d)
        changes.leave(layer.qkv, x, y)
        heads = y.view(len(y), -1, llama.head_width)  # (N, H + 2G, d)
        turned = self._turn(layer, heads[:, : llama.heads + llama.key_heads], rotation, changes)
        query, key = turned[:, : llama.heads], turned[:, llama.heads :]
        value = heads[:, llama.heads + llama.key_heads :]
        real, positions = layout.real, layout.positions
        if real is not None:
            key, value, positions = key[real], value[real], positions[real]
        self._slots.write(number, key, value, slots=layout.slots, positions=positions)
        if mask is None:
            found = self._look_at_prompts(number, query, layout)
        else:
            found = self._look_back(number, layer, query, layout, mask, stages)
        return self._add(layer.o, found, h, changes)

    def _turn(
        self, layer: Layer, heads: Tensor, rotation: tuple[Tensor, Tensor], changes: Changes
    ) -> Tensor:
        """(N, H + G, d) queries and keys, turned by their positions."""
        for norm, own in (
            (layer.query_norm, heads[:, : self._llama.heads]),
            (layer.key_norm, heads[:, self._llama.heads :]),
        ):
            if norm is not None:
                own.copy_(changes.at(norm.path, norm.module, own, norm(own)))
        return turn(heads, *rotation)

    def _look_back(
        self,
        number: int,
        layer: Layer,
        query: Tensor,
        layout: Layout,
        mask: Tensor,
        stages: Stages,
    ) -> Tensor:
        """(B, H · d) of one query (B, H, d) a row; queries that share keys stand side by side."""
        rows, heads, width = query.shape
        if layout.back is not None:
            query = query.index_select(0, layout.back)
        key, value = self._slots.read(number, slots=layout.rows, tokens=mask.shape[-1])
        flat_key, flat_value = key.flatten(0, 1), value.flatten(0, 1)  # (B · G, K, d)
        folded = query.reshape(len(flat_key), -1, width)  # (B · G, H / G, d)
        scores = torch.baddbmm(
            mask, folded, flat_key.transpose(1, 2), alpha=self._llama.scaling
        )  # (B · G, H / G, K)
        shares = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
        found = torch.bmm(shares, flat_value).view(rows, heads, width)
        for stage in stages.get(layer.attention_path + ATTENTION, ()):
            call = self._call(layer, query, key, value, mask)
            found = stage.method.attend(stage.segments, call, found.unsqueeze(1)).squeeze(1)
        if layout.there is not None:
            found = found.index_select(0, layout.there)
        return found.view(rows, -1)

    def _call(
        self, layer: Layer, query: Tensor, key: Tensor, value: Tensor, mask: Tensor
    ) -> AttentionCall:
        """The same attention as a method is told of it."""
        rows = len(query)
        own = mask.view(rows, self._llama.key_heads, -1, mask.shape[-1])[:, :1, :1]  # (B, 1, 1, K)
        options = {"scaling": self._llama.scaling, "is_causal": False}
        return AttentionCall(
            layer.attention, query.unsqueeze(2), key, value, own, options, _compute, True
        )

    def _look_at_prompts(self, number: int, query: Tensor, layout: Layout) -> Tensor:
        """(N, H · d) of the queries (N, H, d) of rows that are read."""
        found = torch.zeros_like(query)
        for part, (lo, hi) in zip(layout.parts, layout.spans, strict=True):
            key, value = self._slots.of_slot(number, part.slot, tokens=part.end)  # (G, K, d)
            mask = None
            if part.start:
                whole = torch.ones(hi - lo, part.end, dtype=torch.bool, device=query.device)
                mask = whole.tril(part.start)
            own = scaled_dot_product_attention(
                query[lo:hi].transpose(0, 1).unsqueeze(0),
                key.unsqueeze(0),
                value.unsqueeze(0),
                attn_mask=mask,
                is_causal=mask is None,
                scale=self._llama.scaling,
                enable_gqa=self._llama.heads != self._llama.key_heads,
            )  # (1, H, tokens, d)
            found[lo:hi] = own[0].transpose(0, 1)
        return found.flatten(1)

    def _feed(self, layer: Layer, h: Tensor, changes: Changes) -> Tensor:
        """(N, D) with the FFN added."""
        x = layer.second_norm(h)
        x = changes.at(layer.second_norm.path, layer.second_norm.module, h, x)
        y = layer.gate_up.product(x)  # (N, 2F)
        changes.leave(layer.gate_up, x, y)
        _, middle = layer.gate_up.bounds[0]
        inner = silu(y[:, :middle]).mul_(y[:, middle:])
        if not changes.touches(layer.block_path):
            return self._add(layer.down, inner, h, changes)
        inner = changes.enter(layer.down, inner)
        out = layer.down.product(inner)
        changes.leave(layer.down, inner, out)
        return h + changes.at(layer.block_path, layer.block, x, out)

    @staticmethod
    def _add(fused: Fused, x: Tensor, h: Tensor, changes: Changes) -> Tensor:
        """(N, D) with a linear of (N, I) added; ``h`` is used up."""
        x = changes.enter(fused, x)
        if changes.only_adds(fused):
            h = fused.product.add(x, h)
            changes.leave(fused, x, h)
            return h
        y = fused.product(x)
        changes.leave(fused, x, y)
        return y.add_(h)


def _token_ends(layout: Layout) -> list[int]:
    """Ends of rows that are packed, or padded by nothing."""
    return [0, *(hi for _, hi in layout.spans)]


def _compute(
    module: Any,  # noqa: ARG001  as transformers has it
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as a base's own function computes it, for methods that ask again."""
    found = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True
    )
    return found.transpose(1, 2), None
