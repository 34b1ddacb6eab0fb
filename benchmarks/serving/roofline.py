"""What the machine allows: bytes over memory bandwidth, products at the speed of its kernels."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

_REPEATS = 15
_COPIES_BYTES = 64 * 2**20
"""Weights are taken in turn from so many bytes of copies, twice the last level of cache here, since
a step reads every weight once."""


def measure(function: Callable[[], Any]) -> float:
    """Median processor seconds of a call; processor time, because other work takes turns."""
    function()
    found = []
    for _ in range(_REPEATS):
        begun = time.process_time()
        function()
        found.append(time.process_time() - begun)
    return statistics.median(found)


def bandwidth() -> float:
    """Bytes a second that a sum reads from memory."""
    numbers = torch.ones(64 * 2**20)  # 256 MiB, beyond every cache
    return numbers.nbytes / measure(numbers.sum)


def _turns(weights: list[Any], product: Callable[[Any], Tensor]) -> Callable[[], Tensor]:
    state = {"turn": 0}

    def call() -> Tensor:
        state["turn"] = (state["turn"] + 1) % len(weights)
        return product(weights[state["turn"]])

    return call


def _kernels(inputs: Tensor, outputs: int) -> dict[str, Callable[[], Tensor]]:
    """Each kernel's product of (M, I) with weights (O, I)."""
    features = inputs.shape[1]
    count = max(1, _COPIES_BYTES // (features * outputs * 4))
    weights = [torch.randn(outputs, features) for _ in range(count)]
    found = {"torch fp32": _turns(weights, lambda weight: linear(inputs, weight))}
    if torch.backends.mkldnn.is_available():
        packed = [torch.ops.mkldnn._reorder_linear_weight(w, len(inputs)) for w in weights]
        multiply = torch.ops.mkldnn._linear_pointwise
        found["oneDNN fp32"] = _turns(
            packed, lambda weight: multiply(inputs, weight, None, "none", [], "")
        )
    if "fbgemm" in torch.backends.quantized.supported_engines:
        halves = [torch.ops.quantized.linear_prepack_fp16(w, None) for w in weights]
        found["FBGEMM fp16 weights"] = _turns(
            halves, lambda weight: torch.ops.quantized.linear_dynamic_fp16(inputs, weight)
        )
    return found


def products(shapes: dict[str, tuple[int, int]], rows: int) -> dict[str, dict[str, float]]:
    """Seconds of every kernel for (rows, I) times (O, I), by the name of the shape."""
    return {
        name: {
            kernel: measure(call)
            for kernel, call in _kernels(torch.randn(rows, features), outputs).items()
        }
        for name, (features, outputs) in shapes.items()
    }


def limits(model: Any, rows: int) -> dict[str, Any]:
    """Tokens a second that a decoding step of the base can reach.

    Args:
        model: A llama-like model.
        rows: Rows of the step.

    Returns:
        ``memory``: weights of fp32 over bandwidth; and by kernel the products alone, no attention
        and nothing between them.
    """
    own = model.config
    width, head = own.hidden_size, own.head_dim
    queries = own.num_attention_heads * head
    keys = own.num_key_value_heads * head
    layer = {
        "q|k|v": (width, queries + 2 * keys),
        "o": (queries, width),
        "gate|up": (width, 2 * own.intermediate_size),
        "down": (own.intermediate_size, width),
    }
    shapes = layer | {"head": (width, own.vocab_size)}
    speed = bandwidth()
    weights = sum(
        i * o * (own.num_hidden_layers if n in layer else 1) for n, (i, o) in shapes.items()
    )
    seconds = products(shapes, rows)
    step = {
        kernel: sum(
            seconds[name][kernel] * (own.num_hidden_layers if name in layer else 1)
            for name in shapes
        )
        for kernel in seconds["head"]
    }
    return {
        "memory_bytes_per_second": round(speed),
        "weights_fp32_bytes": weights * 4,
        "memory_tokens_per_second": round(rows * speed / (weights * 4), 1),
        "gflops": {
            name: {
                kernel: round(2 * rows * i * o / seconds[name][kernel] / 1e9, 1)
                for kernel in seconds[name]
            }
            for name, (i, o) in shapes.items()
        },
        "products_tokens_per_second": {k: round(rows / s, 1) for k, s in step.items()},
    }
