"""Batch 1 by llama.cpp from a wheel: run with the Python of ``make_xllamacpp.sh``.

Continues one prompt of ``export_base`` greedily, end tokens ignored, by a server in this process.
Prints llama.cpp's own tokens a second as JSON, to stand beside ``benchmarks decode --rows 1``.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import xllamacpp


def main() -> None:
    """Ask a few times and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("prompts", type=Path, help="prompts.json")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = str(asked.gguf)
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 512, 1, True, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = asked.threads
    server = xllamacpp.Server(params)
    prompt = json.loads(asked.prompts.read_text())[0]
    asking = {"prompt": prompt, "n_predict": asked.tokens, "temperature": 0, "ignore_eos": True}
    walls, processor, last = [], [], {}
    for _ in range(asked.rounds):
        used = time.process_time()
        last = server.handle_completions(asking | {"cache_prompt": False})
        processor.append(time.process_time() - used)
        walls.append(last["timings"]["predicted_per_second"])
    found = {
        "threads": asked.threads,
        "prompt_tokens": len(prompt),
        "tokens": last["timings"]["predicted_n"],
        "decode_wall": round(statistics.median(walls), 1),
        "end_to_end_cpu": round(asked.tokens / statistics.median(processor), 1),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
