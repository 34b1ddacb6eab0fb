"""A LoRA as a GGUF file, for llama.cpp: causal bases of the Llama kind, low-rank matrices alone.

llama.cpp scales by alpha / r with one alpha: factors of single modules go into the matrices. It
keeps the rows of q and k of Llama in another order than transformers, and B's rows with them.

Source: llama.cpp ``convert_lora_to_gguf.py``, ``convert_hf_to_gguf.py`` (``LlamaModel.permute``),
``src/llama-adapter.cpp``.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.configs.methods import LoraConfig
from peft_engine.delta import Delta
from peft_engine.exchange.findings import Findings
from peft_engine.exchange.peft_lora import pad_pair

# Legend of axes: H heads, d width of a head, R highest rank, I input width.

_ARCHITECTURES: Mapping[str, Any] = MappingProxyType(
    {
        "llama": gguf.MODEL_ARCH.LLAMA,
        "mistral": gguf.MODEL_ARCH.LLAMA,
        "qwen2": gguf.MODEL_ARCH.QWEN2,
        "qwen3": gguf.MODEL_ARCH.QWEN3,
        "gemma": gguf.MODEL_ARCH.GEMMA,
    }
)


def write_gguf(base: Base, delta: Delta, path: Path, found: Findings) -> None:
    """Write a LoRA.

    Args:
        base: The base of the delta.
        delta: The delta, on the CPU.
        path: The file to write.
        found: Told what the format cannot hold; nothing is written then.
    """
    manifest, architecture = delta.manifest, _ARCHITECTURES.get(base.info.model_type)
    if architecture is None or base.architecture != "causal":
        found.refuse(
            "base_not_possible",
            f"a GGUF LoRA is written for {', '.join(_ARCHITECTURES)} models, this base is "
            f"{base.info.model_type}",
            "base_model",
        )
    if manifest.head is not None:
        found.refuse("head_not_possible", "a GGUF LoRA has no head", "head")
    (config, *more) = manifest.methods
    if more or not isinstance(config, LoraConfig) or config.dora:
        names = ", ".join(method.type for method in manifest.methods)
        dora = " with dora" if getattr(config, "dora", False) else ""
        found.refuse("method_not_possible", f"holds one LoRA, this is {names}{dora}", "methods")
    if found.problems or not isinstance(config, LoraConfig) or architecture is None:
        return
    tensors = _name_tensors(base, delta, config, architecture, found)
    if found.problems:
        return
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(_highest_rank(delta, config)))
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _highest_rank(delta: Delta, config: LoraConfig) -> int:
    return max(config.rank_at(path) for path in delta.at_sites())


def _name_tensors(
    base: Base, delta: Delta, config: LoraConfig, architecture: Any, found: Findings
) -> dict[str, Tensor]:
    shape: Any = base.model.config
    names = gguf.get_tensor_name_map(architecture, shape.num_hidden_layers)
    rank = _highest_rank(delta, config)
    tensors: dict[str, Tensor] = {}
    for path, own in delta.at_sites().items():
        name = names.get_name(f"model.{path}")
        if name is None:
            found.refuse("site_not_possible", "llama.cpp has no name for this linear", path)
            continue
        pair = own["lora"]
        down, up = pad_pair(pair["A"], pair["B"] * config.scale_at(path), rank=rank)
        if architecture == gguf.MODEL_ARCH.LLAMA and path.endswith(("q_proj", "k_proj")):
            is_query = path.endswith("q_proj")
            heads = shape.num_attention_heads if is_query else shape.num_key_value_heads
            up = permute_rows(up, heads=heads)
        tensors |= {f"{name}.weight.lora_a": down, f"{name}.weight.lora_b": up}
    return tensors


def permute_rows(up: Tensor, *, heads: int) -> Tensor:
    """Rows of q or k in the order of llama.cpp: the two halves of each head interleaved.

    Args:
        up: (H · d, R).
        heads: H.

    Returns:
        The same rows in another order.
    """
    # (H, 2, d / 2, R) -> (H, d / 2, 2, R)
    halves = up.view(heads, 2, up.shape[0] // heads // 2, *up.shape[1:])
    return halves.transpose(1, 2).reshape(up.shape)
