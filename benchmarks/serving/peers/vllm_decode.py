"""Decoding by vLLM for CPUs, with the Python of the environment that ``make_vllm_cpu.sh`` makes.

``VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_CPU_KVCACHE_SPACE=1
OMP_NUM_THREADS=1 PYTHON vllm_decode.py FOLDER``: threads are not bound to all cores, and there is
one process, whose processor time is all there is.

Reads what ``export_base`` wrote and continues all prompts greedily, end tokens ignored. Prints, as
JSON, tokens a second end to end and of what lies between one and all tokens of a row, which is
decoding alone, to stand beside ``benchmarks decode``; and the texts for comparison.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest


def lora_options(adapters: int) -> dict[str, Any]:
    """What vLLM is told of adapters: room for all of them at once, so that none waits."""
    if not adapters:
        return {}
    return {"enable_lora": True, "max_loras": adapters, "max_lora_rank": 8}


def main() -> None:
    """Time two lengths of answers; their difference is decoding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=33)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--adapters", type=int, default=0, help="row i asks for i modulo these")
    asked = parser.parse_args()
    prompts = json.loads((asked.folder / "prompts.json").read_text())[: asked.rows]
    model = LLM(
        str(asked.folder / "model"),
        skip_tokenizer_init=True,
        dtype=asked.dtype,
        enforce_eager=True,
        enable_prefix_caching=False,
        max_model_len=256,
        max_num_seqs=asked.rows,
        **lora_options(asked.adapters),
    )
    # Rows of vLLM name their adapters by a number from 1 on.
    own = [
        LoRARequest(f"a{i % asked.adapters}", 1 + i % asked.adapters, str(path))
        for i in range(asked.rows if asked.adapters else 0)
        for path in [asked.folder / "adapters" / f"a{i % asked.adapters}"]
    ]

    def write(tokens: int) -> tuple[float, float, Any]:
        sampling = SamplingParams(
            temperature=0, max_tokens=tokens, min_tokens=tokens, ignore_eos=True, detokenize=False
        )
        wall, used = time.perf_counter(), time.process_time()
        found = model.generate(
            [{"prompt_token_ids": ids} for ids in prompts],
            sampling,
            use_tqdm=False,
            lora_request=own or None,
        )
        return time.perf_counter() - wall, time.process_time() - used, found

    write(2)
    rounds: list[dict[str, float]] = []
    texts: list[list[int]] = []
    for _ in range(asked.rounds):
        short, long = write(1), write(asked.tokens)
        decoded, written = asked.rows * (asked.tokens - 1), asked.rows * asked.tokens
        texts = [list(one.outputs[0].token_ids) for one in long[2]]
        rounds.append(
            {
                "decode_wall": decoded / (long[0] - short[0]),
                "decode_cpu": decoded / (long[1] - short[1]),
                "end_to_end_wall": written / long[0],
                "end_to_end_cpu": written / long[1],
            }
        )
    found = {name: round(statistics.median(own[name] for own in rounds), 1) for name in rounds[0]}
    print(
        json.dumps(
            {
                "rows": asked.rows,
                "adapters": asked.adapters,
                "tokens": asked.tokens,
                **found,
                "texts": texts,
            }
        )
    )


if __name__ == "__main__":
    main()
