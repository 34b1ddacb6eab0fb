"""Prefix tuning: learned keys and values that every query of a layer looks at.

Classic (``gate: none``), over the prefix ``P`` and the tokens together:

    y' = softmax(q [P_k; K]ᵀ) [P_v; V] = (1 - λ) y + λ softmax(q P_kᵀ) P_v,

where λ is the share of the softmax that falls on the prefix. Gated (``gate: zero``), each with a
softmax of its own, so that the base is untouched while g is zero:

    y' = y + g ⊙ softmax(q P_kᵀ) P_v, one g for each head.

Prefix keys are not rotated: they stand at no position, and queries see them after rotation.

Source: Li and Liang 2021, arXiv 2101.00190; He et al. 2022, arXiv 2110.04366, equations 5 to 7;
Zhang et al. 2023, arXiv 2303.16199, equation 6.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from peft_engine.configs.methods import PrefixConfig
from peft_engine.methods.protocol import Method, OptimizerGroup
from peft_engine.parts.anatomy import self_attentions
from peft_engine.parts.attention import AttentionCall
from peft_engine.parts.mixing import replace_rows, shares_product
from peft_engine.parts.segments import Segment, Segments
from peft_engine.parts.sites import Site, choose_layers, count_layers

# Legend of axes: B rows, R rows with a prefix, H heads, G heads of keys and values, Q queries,
# P length of a prefix, d width of a head.


class Prefix(Method):
    """Learned keys and values in every self-attention."""

    name = "prefix"
    treats_tokens_alone = False

    def sites(self, trunk: nn.Module, config: PrefixConfig) -> Sequence[Site]:
        """The self-attention of each layer; in an encoder-decoder, of encoder and decoder.

        Args:
            trunk: The part of the base that gives hidden states.
            config: Layers.

        Returns:
            The sites, in the order of the modules.

        Raises:
            ConfigError: A layer that does not exist, a base whose names are not known, or one
                whose attention cannot be reached.
        """  # noqa: DOC502  raised below
        return choose_layers(self_attentions(trunk), config.layers, count=count_layers(trunk))

    def create(
        self, module: nn.Module, site: Site, config: PrefixConfig, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Random keys and values, and a gate at zero.

        Args:
            module: The attention module.
            site: The same.
            config: Length and gate.
            generator: Keys are drawn before values.

        Returns:
            ``keys`` and ``values`` (G, P, d), and with a gate ``gate`` (H,).
        """
        shapes = self.shapes(site, config)
        made = {name: torch.randn(shapes[name], generator=generator) for name in ("keys", "values")}
        return made | {n: torch.zeros(shape) for n, shape in shapes.items() if n == "gate"}

    def attend(self, segments: Segments, call: AttentionCall, y: Tensor) -> Tensor:
        """Look at the prefixes.

        Args:
            segments: Rows of each delta.
            call: Queries, keys and values of all rows.
            y: (B, Q, H, d) attention to the tokens.

        Returns:
            (B, Q, H, d), a new tensor.
        """
        longest = max(segment.config.length for segment in segments)
        gated = all(segment.config.gate == "zero" for segment in segments)
        if gated and shares_product(segments, y.flatten(2), columns=longest):
            return _add_all(segments, call, y)

        def change(segment: Segment, own: Tensor) -> Tensor:
            if segment.config.gate == "none":
                keys, values = segment.params["keys"], segment.params["values"]
                return call.with_prefix(segment.rows, keys, values)
            return own + _gated(segment, call)

        return replace_rows(segments, y, change)

    def groups(self, config: PrefixConfig) -> Sequence[OptimizerGroup]:
        """No decay: shorter keys would spread the softmax, shorter values undo the gate.

        Args:
            config: Whether there is a gate.

        Returns:
            One group.
        """
        gate = ("gate",) if config.gate == "zero" else ()
        return (OptimizerGroup(names=("keys", "values", *gate), decay=False),)

    def shapes(self, site: Site, config: PrefixConfig) -> dict[str, tuple[int, ...]]:
        """Shapes of prefix and gate.

        Args:
            site: The site, as ``sites`` gives it.
            config: Length and gate.

        Returns:
            ``keys`` and ``values`` (G, P, d), and with a gate ``gate`` (H,).
        """
        width = site.in_features // site.heads
        shape = (site.out_features // width, config.length, width)
        shapes: dict[str, tuple[int, ...]] = {"keys": shape, "values": shape}
        return shapes | {"gate": (site.heads,)} if config.gate == "zero" else shapes


def _gated(segment: Segment, call: AttentionCall) -> Tensor:
    """(rows, Q, H, d) what the prefix of one delta adds to its rows."""
    query = call.query[segment.rows]
    rows, heads, queries, width = query.shape
    keys, values = (segment.params[name].to(query.dtype) for name in ("keys", "values"))
    groups = keys.shape[0]
    # Heads that share keys stand together: (R, G, H/G, Q, d) -> (G, R · H/G · Q, d)
    flat = query.view(rows, groups, heads // groups, queries, width).transpose(0, 1)
    flat = flat.reshape(groups, -1, width)
    found = _attend(flat * call.scaling, keys, values)
    found = found.view(groups, rows, heads // groups, queries, width)
    # (G, R, H/G, Q, d) -> (R, Q, G, H/G, d)
    found = found.permute(1, 3, 0, 2, 4).reshape(rows, queries, heads, width)
    return found * segment.params["gate"].to(found.dtype).unsqueeze(-1)


def _add_all(segments: Segments, call: AttentionCall, y: Tensor) -> Tensor:
    """``y`` with the prefixes of all deltas added, in one product over all their rows."""
    places, keys, values, gates, hidden = segments.stack(
        f"prefix|{y.dtype}", lambda all_: _stack_prefixes(all_, y)
    )
    query = call.query.index_select(0, places)  # (R, H, Q, d)
    rows, heads, queries, width = query.shape
    # Heads that share keys stand together: (R, H, Q, d) -> (R, G, H/G · Q, d)
    query = query.reshape(rows, keys.shape[1], -1, width) * call.scaling
    found = _attend(query, keys, values, hidden).view(rows, heads, queries, width)
    return y.index_add(0, places, found.transpose(1, 2) * gates)


def _stack_prefixes(segments: Segments, like: Tensor) -> tuple[Tensor, ...]:
    """Prefixes row by row, padded to the longest.

    Returns:
        Rows (R,), keys and values (R, G, P, d), gates (R, 1, H, 1), and (R, 1, 1, P) that is -inf
        at padding.
    """
    longest = max(segment.config.length for segment in segments)
    parts: list[tuple[Tensor, ...]] = []
    for segment in segments:
        count, free = segment.hi - segment.lo, longest - segment.config.length
        keys, values = (
            nn.functional.pad(segment.params[name].to(like.dtype), (0, 0, 0, free))
            for name in ("keys", "values")
        )  # (G, P, d)
        gate = segment.params["gate"].to(like.dtype).view(1, -1, 1)  # (1, H, 1)
        hidden = torch.zeros(1, 1, longest, device=like.device)  # (1, 1, P)
        hidden[..., segment.config.length :] = -torch.inf
        own = (torch.arange(segment.lo, segment.hi, device=like.device),)
        parts.append(own + tuple(t.expand(count, *t.shape) for t in (keys, values, gate, hidden)))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _attend(query: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None = None) -> Tensor:
    """(…, N, d) of scaled queries (…, N, d) over (…, P, d), the softmax in fp32."""
    scores = (query @ keys.transpose(-1, -2)).float()  # (…, N, P)
    if hidden is not None:
        scores = scores + hidden
    return scores.softmax(-1).to(values.dtype) @ values
