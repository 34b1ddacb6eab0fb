"""The token table in 8 bits: rows are made whole as they are looked up."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from peft_engine.compression.quantization.integers import round_weight

# Legend of axes: V tokens, D width.


class QuantizedEmbedding(nn.Embedding):
    """A frozen table with 8 bits a value and one scale a token.

    Args:
        table: The table whose values it takes; a scale of its own (BART) is kept.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, table: nn.Embedding) -> None:
        nn.Module.__init__(self)  # nn.Embedding's own would make a weight
        self.num_embeddings, self.embedding_dim = table.weight.shape
        self.padding_idx = table.padding_idx
        self.embed_scale = float(getattr(table, "embed_scale", 1.0))
        self._dtype = table.weight.dtype
        codes, scales = round_weight(table.weight, levels=127)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(V, D), what the codes stand for; a new tensor each time."""
        return (self.codes.float() * self.scales.unsqueeze(1)).to(self._dtype)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Look tokens up.

        Args:
            input_ids: (…) ids.

        Returns:
            (…, D) in the type of the base.
        """
        rows = self.codes[input_ids].float() * self.scales[input_ids].unsqueeze(-1)
        return (rows * self.embed_scale).to(self._dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        scales = self.scales
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.scales = scales.to(self.codes.device)
        self._dtype = fn(torch.empty(0, dtype=self._dtype)).dtype
        return self
