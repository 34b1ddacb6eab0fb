"""The sides of the decoding benchmark that run in one process on one set of weights."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from transformers import StoppingCriteria, StoppingCriteriaList

from benchmarks.serving.workload import ALPHA, NEW_TOKENS, RANK, Clock
from peft_engine.bases.base import Base
from peft_engine.decoding import DecodingLimits
from peft_engine.delta import Delta
from peft_engine.generation import Sampling
from peft_engine.parts.batching import Example, TokenRow
from peft_engine.serving import Engine, PreparedRow

Texts = list[list[int]]
Side = Callable[[Texts, int, Clock], Texts]
"""Continues prompts greedily by so many tokens each, whatever they are; steps by the clock."""


def ours(engine: Engine, deltas: Sequence[Delta | None]) -> Side:
    """Our engine; row ``i`` asks for delta ``i`` modulo their number."""

    def run(prompts: Texts, tokens: int, clock: Clock) -> Texts:
        sampling, writer = Sampling(max_new_tokens=tokens), engine.writer
        clock.start()
        writings = []
        for place, prompt in enumerate(prompts):
            example = Example((TokenRow(list(prompt)),))
            delta = deltas[place % len(deltas)]
            row = PreparedRow("generate", delta, (example,), samplings=(sampling,))
            writings.append(writer.prepare(row))
            writer.begin(writings[-1])
        while writer.open:
            writing = all(w.choices[0].choices for w in writings)
            writer.step()
            clock.step(sum(len(w.choices[0].choices) for w in writings), steady=writing)
        return [w.choices[0].ids for w in writings]

    return run


def endless(base: Base) -> Base:
    """The base without an end token, so that every row writes as many tokens as it was asked."""
    text = copy.copy(base.text)
    text.eos_id = None
    return replace(base, text=text)


def engine_of(base: Base, rows: int) -> Engine:
    """An engine with room for all rows."""
    engine = Engine(endless(base), limits=DecodingLimits(rows=rows, cache_tokens=rows * 2048))
    engine.writer.lay_out()
    return engine


class _Marks(StoppingCriteria):
    """Marks the moment at which every row has one token more; stops nothing."""

    def __init__(self, clock: Clock, prompt_tokens: int) -> None:
        self._clock, self._prompt_tokens = clock, prompt_tokens

    def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        rows, tokens = input_ids.shape
        written = tokens - self._prompt_tokens
        self._clock.step(rows * written, steady=written > 1)
        return torch.zeros(rows, dtype=torch.bool, device=input_ids.device)


def transformers_generate(model: Any, adapters: Sequence[str] = ()) -> Side:
    """``generate`` of transformers, or of PEFT: row ``i`` asks for one of the adapters."""

    def run(prompts: Texts, tokens: int, clock: Clock) -> Texts:
        ids = torch.tensor(prompts, device=model.device)
        options: dict[str, Any] = {}
        if adapters:
            options["adapter_names"] = [adapters[i % len(adapters)] for i in range(len(prompts))]
        clock.start()
        with torch.inference_mode():
            found = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=False,
                eos_token_id=None,
                stopping_criteria=StoppingCriteriaList([_Marks(clock, ids.shape[1])]),
                **options,
            )
        texts: Texts = found[:, ids.shape[1] :].tolist()
        return texts

    return run


def peft_model(base: Base, deltas: Sequence[Delta]) -> tuple[Any, list[str]]:
    """A copy of the base under PEFT with the tensors of our deltas, in the type of the base."""
    names = [f"a{place}" for place in range(len(deltas))]
    config = PeftConfig(
        r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    # Without the type of the base PEFT would multiply adapters in fp32 beside a base in bf16.
    model = get_peft_model(
        copy.deepcopy(base.model), config, adapter_name=names[0], autocast_adapter_dtype=False
    )
    for name in names[1:]:
        model.add_adapter(name, config, autocast_adapter_dtype=False)
    for name, delta in zip(names, deltas, strict=True):
        for path, methods in delta.at_sites().items():
            module: Any = model.get_submodule(f"base_model.model.model.{path}")
            module.lora_A[name].weight.data.copy_(methods["lora"]["A"])
            module.lora_B[name].weight.data.copy_(methods["lora"]["B"])
    return model.eval(), names


def no_end(model: Any) -> None:
    """Let ``generate`` know of no end token."""
    model.generation_config.eos_token_id = None


__all__ = ["NEW_TOKENS", "endless", "engine_of", "no_end", "ours", "peft_model"]
