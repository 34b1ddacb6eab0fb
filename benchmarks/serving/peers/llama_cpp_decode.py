"""Batch 1 by llama.cpp: run with the Python of the environment that ``make_llama_cpp.sh`` makes.

Reads the base's GGUF file as it is (4-bit weights, where ours has what they stand for in fp32) and
prints tokens a second of the median step as JSON, to stand beside ``benchmarks decode --rows 1``.
"""

import argparse
import json
import statistics
import time

from llama_cpp import Llama

_PROMPT = "name[Loch Fyne], food[French], customer rating[high], area[riverside]. " * 4


def main() -> None:
    """Continue one prompt greedily, a token a step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    asked = parser.parse_args()
    model = Llama(
        asked.gguf,
        n_ctx=512,
        n_threads=asked.threads,
        n_threads_batch=asked.threads,
        logits_all=False,
        verbose=False,
    )
    ids = model.tokenize(_PROMPT.encode())[: asked.prompt_tokens]
    begun = time.perf_counter()
    model.eval(ids)
    read = time.perf_counter() - begun
    steps, processor = [], []
    for _ in range(asked.tokens):
        before, used = time.perf_counter(), time.process_time()
        model.eval([model.sample(temp=0.0)])
        steps.append(time.perf_counter() - before)
        processor.append(time.process_time() - used)
    found = {
        "threads": asked.threads,
        "prompt_tokens": len(ids),
        "prompt_tokens_per_second": len(ids) / read,
        "decode_wall": 1 / statistics.median(steps),
        "decode_cpu": 1 / statistics.median(processor),
    }
    print(json.dumps({name: round(value, 1) for name, value in found.items()}))


if __name__ == "__main__":
    main()
