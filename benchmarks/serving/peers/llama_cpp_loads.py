"""Our GGUF LoRA and merged model in llama.cpp: run with the Python of ``make_xllamacpp.sh``.

``exchange_ours.py`` writes the folder. Prints, as JSON, which greedy answers hold the tokens that
ours hold: from the base, from base and LoRA, from the merged model; ends with an error where
one does not.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import xllamacpp


def serve(model: Path, lora: Path | None) -> Any:
    """llama.cpp's server in this process, fp32, one thread."""
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 512, 1, False, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    kind = xllamacpp.ggml_type.GGML_TYPE_F32
    params.cache_type_k = params.cache_type_v = kind  # fp16 by default, which turns near ties round
    if lora is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
    return xllamacpp.Server(params)


def answer(server: Any, ids: list[int], tokens: int) -> list[int]:
    """Greedy continuation; the log of probabilities is what tells its token ids."""
    asked = {"prompt": ids, "max_tokens": tokens, "temperature": 0, "logprobs": 1}
    (choice,) = server.handle_completions(asked | {"cache_prompt": False})["choices"]
    return [token["id"] for token in choice["logprobs"]["content"]]


def main() -> None:
    """Load, ask, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    expected = json.loads((asked.folder / "expected.json").read_text())
    base, lora = asked.folder / "base.gguf", asked.folder / "gguf" / "files" / "adapter.gguf"
    same = {}
    for name, model, delta, ours in (
        ("base", base, None, expected["base"]),
        ("lora", base, lora, expected["lora"]),
        ("merged", asked.folder / "merged.gguf", None, expected["lora"]),
    ):
        server = serve(model, delta)
        found = [answer(server, ids, expected["new_tokens"]) for ids in expected["prompts"]]
        same[name] = [
            own[: len(one)] == one[: len(own)] and min(len(own), len(one)) > 0
            for own, one in zip(found, ours, strict=True)
        ]
        del server
    print(json.dumps(same))
    sys.exit(not all(map(all, same.values())))


if __name__ == "__main__":
    main()
