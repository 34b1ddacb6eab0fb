"""What the machine allows: bytes over memory bandwidth, products at the speed of its kernels."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from peft_engine.decoding.products import BlasProduct, usable
from peft_engine.runtime import DTYPES

_TYPES = {dtype: name for name, dtype in DTYPES.items()}
_REPEATS = 15
_CALLS_ON_CUDA = 20
"""Calls that are started one behind the other before the device is waited for, so that what it
takes to start one of them is hidden as far as it can be."""
_COPIES_BYTES = {"cpu": 64 * 2**20, "cuda": 128 * 2**20}
"""Weights are taken in turn from so many bytes of copies, at least twice the last level of cache
(32 MB here, 50 MB of an H100), since a step reads every weight once."""


def measure(function: Callable[[], Any], *, device: torch.device) -> float:
    """Median seconds of a call.

    On a CPU of its processor time, because other work takes turns; on CUDA of the wall, the device
    waited for.
    """
    function()
    found = []
    for _ in range(_REPEATS):
        if device.type == "cuda":
            found.append(_wall_seconds(function, device))
            continue
        begun = time.process_time()
        function()
        found.append(time.process_time() - begun)
    return statistics.median(found)


def _wall_seconds(function: Callable[[], Any], device: torch.device) -> float:
    torch.cuda.synchronize(device)
    begun = time.perf_counter()
    for _ in range(_CALLS_ON_CUDA):
        function()
    torch.cuda.synchronize(device)
    return (time.perf_counter() - begun) / _CALLS_ON_CUDA


def bandwidth(device: torch.device) -> float:
    """Bytes a second that a sum reads from memory."""
    numbers = torch.ones(64 * 2**20, device=device)  # 256 MiB, beyond every cache
    return numbers.nbytes / measure(numbers.sum, device=device)


def _turns(weights: list[Any], product: Callable[[Any], Tensor]) -> Callable[[], Tensor]:
    state = {"turn": 0}

    def call() -> Tensor:
        state["turn"] = (state["turn"] + 1) % len(weights)
        return product(weights[state["turn"]])

    return call


def _kernels(inputs: Tensor, outputs: int) -> dict[str, Callable[[], Tensor]]:
    """Each kernel's product of (M, I) with weights (O, I); those for CPUs on a CPU alone."""
    features, on_cpu = inputs.shape[1], inputs.device.type == "cpu"
    copies = _COPIES_BYTES["cpu" if on_cpu else "cuda"]
    count = max(1, copies // (features * outputs * inputs.element_size()))
    weights = [inputs.new_empty(outputs, features).normal_() for _ in range(count)]
    name = _TYPES[inputs.dtype]
    found = {f"torch {name}": _turns(weights, lambda weight: linear(inputs, weight))}
    if on_cpu and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        packed = [torch.ops.mkldnn._reorder_linear_weight(w, len(inputs)) for w in weights]
        multiply = torch.ops.mkldnn._linear_pointwise
        found["oneDNN fp32"] = _turns(
            packed, lambda weight: multiply(inputs, weight, None, "none", [], "")
        )
    if usable("blas", dtype=inputs.dtype, device=inputs.device):
        laid_out = [BlasProduct(weight, None) for weight in weights]
        found["BLAS fp32"] = _turns(laid_out, lambda product: product(inputs))
    if on_cpu and "fbgemm" in torch.backends.quantized.supported_engines:
        halves = [torch.ops.quantized.linear_prepack_fp16(w, None) for w in weights]
        found["FBGEMM fp16 weights"] = _turns(
            halves, lambda weight: torch.ops.quantized.linear_dynamic_fp16(inputs, weight)
        )
    return found


def products(
    shapes: dict[str, tuple[int, int]], rows: int, *, like: Tensor
) -> dict[str, dict[str, float]]:
    """Seconds of every kernel for (rows, I) times (O, I), by the name of the shape."""
    return {
        name: {
            kernel: measure(call, device=like.device)
            for kernel, call in _kernels(like.new_empty(rows, features).normal_(), outputs).items()
        }
        for name, (features, outputs) in shapes.items()
    }


def limits(model: Any, rows: int) -> dict[str, Any]:
    """Tokens a second that a decoding step of the base can reach on its device.

    Args:
        model: A llama-like model.
        rows: Rows of the step.

    Returns:
        ``memory``: weights over bandwidth, on a CPU those of fp32, on CUDA of the model's type; and
        by kernel the products alone, no attention and nothing between them.
    """
    weight = model.get_output_embeddings().weight
    like = torch.empty(0) if weight.device.type == "cpu" else weight.detach()
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
    speed = bandwidth(like.device)
    weights = like.element_size() * sum(
        i * o * (own.num_hidden_layers if n in layer else 1) for n, (i, o) in shapes.items()
    )
    seconds = products(shapes, rows, like=like)
    step = {
        kernel: sum(
            seconds[name][kernel] * (own.num_hidden_layers if name in layer else 1)
            for name in shapes
        )
        for kernel in seconds["head"]
    }
    return {
        "memory_bytes_per_second": round(speed),
        f"weights_{_TYPES[like.dtype]}_bytes": weights,
        "memory_tokens_per_second": round(rows * speed / weights, 1),
        "gflops": {
            name: {
                kernel: round(2 * rows * i * o / seconds[name][kernel] / 1e9, 1)
                for kernel in seconds[name]
            }
            for name, (i, o) in shapes.items()
        },
        "products_tokens_per_second": {k: round(rows / s, 1) for k, s in step.items()},
    }
