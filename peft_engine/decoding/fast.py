"""Which forward computes a decoding batch: the fast path where it is right, else the base."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.decoding.forward import GeneralForward, Part, Stages
from peft_engine.decoding.llama import read_llama
from peft_engine.decoding.llama_forward import LlamaForward
from peft_engine.decoding.products import Kernel, usable
from peft_engine.decoding.slots import KeyValueSlots
from peft_engine.runtime import DTYPES

_log = logging.getLogger(__name__)

_KERNELS: tuple[Kernel, ...] = ("blas", "onednn", "torch")
"""The first that is usable is taken."""

_TRIAL = ((1, 2, 3, 4, 5), (3, 1, 2))
"""Tokens that every vocabulary has; two rows of different length."""

_ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.2}
"""By type of the base. A family that computes something else (a scaled residual stream, another
activation) differs by more than that. In bf16 two orders of the same sums drift apart layer by
layer: on ``smollm2`` (30 layers) the base's own modules differ from fp32 by 0.05 to 0.06, this path
by 0.02 to 0.05, and the two from each other by up to 0.1."""

_ROUNDING_INT8 = 0.05
"""The last bit of an activation may fall to the other side of a half, where it is rounded to 8 bits
in every linear."""


class DecodingForward:
    """The fast path with the base's own modules behind it; see ``GeneralForward``.

    Weights are laid out on first use, since a base that never writes shall not pay for it.

    Args:
        base: A causal base.
        slots: Keys and values of its rows.
    """

    def __init__(self, base: Base, slots: KeyValueSlots) -> None:
        self._base = base
        self._slots = slots
        self._general = GeneralForward(base, slots)
        self._fast: LlamaForward | None = None
        self._is_prepared = False

    @property
    def kernel(self) -> str:
        """By which products tokens are written; ``general`` without the fast path."""
        return "general" if self._fast is None else self._fast.kernel

    @property
    def layout_bytes(self) -> int:
        """Memory of the weights as the fast path has them, beside the base's own."""
        return 0 if self._fast is None else self._fast.layout_bytes

    @torch.inference_mode()
    def prepare(self) -> None:
        """Lay out the weights and try them, once; while no plan is in force."""
        if self._is_prepared:
            return
        self._is_prepared = True
        # Of the weights as they are, not as they are called: some processors know no product of it.
        dtype, device = next(self._base.trunk.parameters()).dtype, self._base.device
        kernel = next(name for name in _KERNELS if usable(name, dtype=dtype, device=device))
        llama = read_llama(self._base, kernel)
        if llama is None:
            return
        fast = LlamaForward(llama, self._slots)
        if self._agrees(LlamaForward(llama, KeyValueSlots())):
            self._fast = fast
        else:
            _log.warning("the fast path does not compute what %s does", self._base.name)

    def hidden(self, parts: Sequence[Part], stages: Stages) -> Tensor:
        """Read tokens; see ``GeneralForward``.

        Args:
            parts: B rows.
            stages: What their deltas do; a plan with the same stages is in force on the router.

        Returns:
            (B, D) hidden state of the last token of each part.
        """
        if self._fast is not None and self._fast.knows(parts, stages):
            return self._fast.hidden(parts, stages)
        return self._general.hidden(parts, stages)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token.

        Args:
            hidden: (N, D) hidden states.

        Returns:
            (N, V) fp32.
        """
        own = self._general if self._fast is None else self._fast
        return own.logits(hidden)

    def release(self) -> None:
        """Let go of what was made of deltas."""
        if self._fast is not None:
            self._fast.release()

    def _agrees(self, fast: LlamaForward) -> bool:
        """Whether two rows come out of it as they do of the base's own modules."""
        general = GeneralForward(self._base, KeyValueSlots())
        allowed = self._rounding()
        parts = [Part(slot, 0, ids) for slot, ids in enumerate(_TRIAL)]
        more = [Part(part.slot, part.end, [1]) for part in parts]
        for step in (parts, more):
            found, expected = fast.hidden(step, {}), general.hidden(step, {})
            if not _is_near(found, expected, allowed):
                return False
            if not _is_near(fast.logits(found), general.logits(expected), allowed):
                return False
        return True

    def _rounding(self) -> float:
        """Relative difference that two orders of the same sums may make."""
        if self._base.info.derivation.quantization == "int8":
            return _ROUNDING_INT8
        return _ROUNDING[DTYPES[self._base.precision]]


def _is_near(found: Tensor, expected: Tensor, allowed: float) -> bool:
    return float((found - expected).norm()) <= allowed * float(expected.norm())
