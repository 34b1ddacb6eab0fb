"""Llama-like decoders as a table of products: what the fast path reads of a base.

Llama, Mistral, Qwen 2 and 3, SmolLM: ``h += o(attend(turn(q|k|v(norm(h)))))`` and
``h += down(silu(gate) · up)`` of ``gate|up(norm(h))``. Linears that read the same input are one
matrix here. Whether a base really computes this is not believed from its names: it is tried.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn.functional import rms_norm

from peft_engine.bases.base import Base
from peft_engine.decoding.products import Kernel, Product, product_of

# Legend of axes: N tokens, I input width, O output width, D width, H heads, G heads of keys and
# values, d width of a head, P positions.

_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}
"""Kinds of rotation that depend on the position alone, so that a table can be made once."""

_FIRST_POSITIONS = 256


@dataclass(frozen=True)
class Fused:
    """Linears that read the same input, as one product.

    Attributes:
        paths: Their paths in the trunk.
        modules: The linears themselves.
        bounds: First column of each of them in the output, and the one after its last.
        product: (N, I) to (N, O).
    """

    paths: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    bounds: tuple[tuple[int, int], ...]
    product: Product


@dataclass(frozen=True)
class RmsNorm:
    """A norm.

    Attributes:
        path: Its path in the trunk.
        module: The norm itself.
        weight: (D,) or (d,).
        epsilon: Added to the mean square.
    """

    path: str
    module: nn.Module
    weight: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise the last axis.

        On a CPU torch's own is made of eight small calls; four do the same (14 to 7 microseconds
        for a row of 576, 22 to 12 for 32 rows, and more where products have emptied the caches).
        """
        if x.dtype != torch.float32 or x.device.type != "cpu":
            return rms_norm(x, self.weight.shape, self.weight, self.epsilon)
        weight, least = self._for_lengths
        return (x / torch.hypot(vector_norm(x, dim=-1, keepdim=True), least)).mul_(weight)

    @cached_property
    def _for_lengths(self) -> tuple[Tensor, Tensor]:
        """Weight times the root of D, and the root of D times epsilon.

        With them ``x / sqrt(mean(x²) + epsilon)`` becomes ``x / hypot(|x|, …)``.
        """
        width = self.weight.shape[-1]
        return self.weight * width**0.5, self.weight.new_tensor((width * self.epsilon) ** 0.5)


@dataclass(frozen=True)
class Layer:
    """One layer; ``query_norm`` and ``key_norm`` are Qwen 3's."""

    attention_path: str
    attention: nn.Module
    block_path: str
    block: nn.Module
    first_norm: RmsNorm
    second_norm: RmsNorm
    query_norm: RmsNorm | None
    key_norm: RmsNorm | None
    qkv: Fused
    o: Fused
    gate_up: Fused
    down: Fused


class RotaryTable:
    """Cosines and sines of all positions so far, asked of the base's own module.

    Args:
        module: The base's ``rotary_emb``.
        like: A tensor of the type and on the device of the base.
    """

    def __init__(self, module: nn.Module, like: Tensor) -> None:
        self._module = module
        self._like = like
        self._cosines, self._sines = self._make(_FIRST_POSITIONS)  # (P, 1, d)

    def at(self, positions: Tensor, *, longest: int) -> tuple[Tensor, Tensor]:
        """Factors with which ``turn`` turns.

        Args:
            positions: (N,).
            longest: Highest of them, plus one.

        Returns:
            (N, 1, d) cosines, and sines with the sign of the half that they meet.
        """
        if longest > len(self._cosines):
            self._cosines, self._sines = self._make(1 << (longest - 1).bit_length())
        return self._cosines[positions], self._sines[positions]

    def _make(self, count: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(count, device=self._like.device).unsqueeze(0)
        cosines, sines = self._module(self._like, positions)  # (1, P, d)
        half = sines.shape[-1] // 2
        signed = torch.cat([-sines[..., :half], sines[..., half:]], dim=-1)
        return cosines[0].unsqueeze(1), signed[0].unsqueeze(1)


def turn(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn heads by their position.

    Args:
        x: (N, H, d).
        cosines: (N, 1, d).
        sines: (N, 1, d), the first half negated.

    Returns:
        (N, H, d), new.

    Source: Su et al. 2021, arXiv 2104.09864, equation 34, with halves for pairs as in transformers.
    """
    return (x * cosines).addcmul_(x.roll(x.shape[-1] // 2, -1), sines)


@dataclass(frozen=True)
class Llama:
    """A llama-like base, ready for the fast path.

    Attributes:
        embedding: The table of tokens.
        layers: Its layers in order.
        norm: The last norm.
        head: Language head, (N, D) to (N, V).
        heads: H.
        key_heads: G.
        head_width: d.
        scaling: Factor on the products of queries and keys.
        rotary: Table of rotations.
        kernel: By which products are computed.
    """

    embedding: nn.Embedding
    layers: tuple[Layer, ...]
    norm: RmsNorm
    head: Product
    heads: int
    key_heads: int
    head_width: int
    scaling: float
    rotary: RotaryTable
    kernel: Kernel

    @property
    def bytes(self) -> int:
        """Memory that the products hold beside the base's own."""
        return self.head.bytes + sum(
            fused.product.bytes
            for layer in self.layers
            for fused in (layer.qkv, layer.o, layer.gate_up, layer.down)
        )

    @property
    def paths(self) -> frozenset[str]:
        """Paths of all modules at which deltas may act here."""
        found = {"embed_tokens", self.norm.path}
        for layer in self.layers:
            norms = (layer.first_norm, layer.second_norm, layer.query_norm, layer.key_norm)
            found |= {norm.path for norm in norms if norm is not None} | {layer.block_path}
            for fused in (layer.qkv, layer.o, layer.gate_up, layer.down):
                found |= set(fused.paths)
        return frozenset(found)


def read_llama(base: Base, kernel: Kernel) -> Llama | None:
    """Lay out the weights of a llama-like base.

    Args:
        base: A causal base.
        kernel: By which products are computed.

    Returns:
        None when it is built of other modules; otherwise the copy, which is still to be tried.
    """
    trunk: Any = base.trunk
    if not _is_llama_like(trunk, base.model):
        return None
    own = trunk.config
    heads = int(own.num_attention_heads)
    width = int(getattr(own, "head_dim", None) or own.hidden_size // heads)
    head = base.model.get_output_embeddings()  # type: ignore[operator]
    return Llama(
        embedding=trunk.embed_tokens,
        layers=tuple(_read_layer(trunk, number, kernel) for number in range(len(trunk.layers))),
        norm=_norm(trunk, "norm"),
        head=product_of([head], kernel),
        heads=heads,
        key_heads=int(own.num_key_value_heads),
        head_width=width,
        scaling=float(trunk.layers[0].self_attn.scaling),
        rotary=RotaryTable(trunk.rotary_emb, trunk.norm.weight),
        kernel=kernel,
    )


def _is_llama_like(trunk: Any, model: Any) -> bool:
    layers = getattr(trunk, "layers", None)
    parts = ("embed_tokens", "rotary_emb", "norm")
    if not isinstance(layers, nn.ModuleList) or not all(hasattr(trunk, name) for name in parts):
        return False
    own = trunk.config
    windows = set(getattr(own, "layer_types", None) or ["full_attention"]) != {"full_attention"}
    if windows or getattr(own, "sliding_window", None) is not None:
        return False
    rope = getattr(own, "rope_parameters", None) or {}
    is_static = rope.get("rope_type", "default") in _STATIC_ROPE
    return (
        is_static
        and isinstance(model.get_output_embeddings(), nn.Linear)
        and all(_is_layer(layer) and _has_whole_heads(layer, own) for layer in layers)
    )


def _is_layer(layer: Any) -> bool:
    linears = [f"self_attn.{name}_proj" for name in ("q", "k", "v", "o")]
    linears += [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    norms = ("input_layernorm", "post_attention_layernorm")
    own = dict(layer.named_modules())
    # Quantized linears have no parameters.
    names = {name for name, module in own.items() if _has_numbers(module)}
    expected = {*linears, *norms}
    return (
        all(isinstance(own.get(name), nn.Linear) for name in linears)
        and expected <= names <= expected | {"self_attn.q_norm", "self_attn.k_norm"}
        and type(getattr(layer.mlp, "act_fn", None)).__name__ in ("SiLU", "SiLUActivation")
    )


def _has_whole_heads(layer: Any, own: Any) -> bool:
    """Whether a layer has as many heads as the configuration says: pruning may have taken some."""
    heads, groups = int(own.num_attention_heads), int(own.num_key_value_heads)
    width = int(getattr(own, "head_dim", None) or own.hidden_size // heads)
    attention = layer.self_attn
    found = (attention.q_proj.out_features, attention.k_proj.out_features)
    return found == (heads * width, groups * width)


def _has_numbers(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or any(True for _ in module.parameters(False))


def _read_layer(trunk: Any, number: int, kernel: Kernel) -> Layer:
    path = f"layers.{number}"

    def fuse(*names: str) -> Fused:
        return _fuse(trunk, [f"{path}.{name}_proj" for name in names], kernel)

    has_norms = hasattr(trunk.layers[number].self_attn, "q_norm")
    return Layer(
        attention_path=f"{path}.self_attn",
        attention=trunk.layers[number].self_attn,
        block_path=f"{path}.mlp",
        block=trunk.layers[number].mlp,
        first_norm=_norm(trunk, f"{path}.input_layernorm"),
        second_norm=_norm(trunk, f"{path}.post_attention_layernorm"),
        query_norm=_norm(trunk, f"{path}.self_attn.q_norm") if has_norms else None,
        key_norm=_norm(trunk, f"{path}.self_attn.k_norm") if has_norms else None,
        qkv=fuse("self_attn.q", "self_attn.k", "self_attn.v"),
        o=fuse("self_attn.o"),
        gate_up=fuse("mlp.gate", "mlp.up"),
        down=fuse("mlp.down"),
    )


def _norm(trunk: nn.Module, path: str) -> RmsNorm:
    module: Any = trunk.get_submodule(path)
    return RmsNorm(path, module, module.weight, float(module.variance_epsilon))


def _fuse(trunk: nn.Module, paths: Sequence[str], kernel: Kernel) -> Fused:
    modules: list[Any] = [trunk.get_submodule(path) for path in paths]
    bounds, first = [], 0
    for module in modules:
        bounds.append((first, first + module.out_features))
        first += module.out_features
    product = product_of(modules, kernel)
    return Fused(tuple(paths), tuple(modules), tuple(bounds), product)
