"""The two stacks of an encoder-decoder base, and which of them a delta may change.

A task with a head reads hidden states of the encoder alone, so the decoder is not computed for it
and a site there would be a silent no-op. Sites have the same names either way.
"""

from typing import Any

from torch import Tensor, nn

# Legend of axes: B rows, T tokens of the encoder, U tokens of the decoder, D width.


class TwoStacks(nn.Module):
    """Encoder and decoder of a base, without its language head.

    Args:
        encoder: Gives (B, T, D) hidden states of a prompt.
        decoder: Gives (B, U, D) hidden states of an answer that looks at them.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def get_input_embeddings(self) -> nn.Module:
        """The token table of the encoder.

        Returns:
            The module that turns token ids into the encoder's input.
        """
        table: nn.Module = self.encoder.get_input_embeddings()  # type: ignore[operator]
        return table

    def encode(self, *, attention_mask: Tensor, **inputs: Any) -> Tensor:
        """Hidden states of prompts.

        Args:
            attention_mask: (B, T) 1 for real tokens.
            **inputs: ``input_ids`` (B, T) or ``inputs_embeds`` (B, T, D).

        Returns:
            (B, T, D).
        """
        found: Tensor = self.encoder(attention_mask=attention_mask, **inputs).last_hidden_state
        return found

    def decode(
        self, input_ids: Tensor, *, prompt: Tensor, prompt_mask: Tensor, **cache: Any
    ) -> Tensor:
        """Hidden states of answers, or of their next tokens when a cache holds the earlier ones.

        Args:
            input_ids: (B, U) token ids. A token looks at none to its right, so padding there does
                no harm.
            prompt: (B, T, D) hidden states of the prompts.
            prompt_mask: (B, T) 1 for their real tokens.
            **cache: ``past_key_values`` and ``use_cache``.

        Returns:
            (B, U, D).
        """
        output = self.decoder(
            input_ids=input_ids,
            encoder_hidden_states=prompt,
            encoder_attention_mask=prompt_mask,
            **cache,
        )
        found: Tensor = output.last_hidden_state
        return found


class _EncoderHalf(nn.Module):
    """The encoder under the name that it has in the whole."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder


def part_read(trunk: nn.Module, *, has_head: bool) -> nn.Module:
    """The part of a trunk that a task reads, where methods may act.

    Args:
        trunk: The part of a base that gives hidden states.
        has_head: Whether the task has a head of its own.

    Returns:
        Of two stacks the encoder alone when there is a head; else the trunk as it is. Paths of
        modules are those of the whole trunk.
    """
    if has_head and isinstance(trunk, TwoStacks):
        return _EncoderHalf(trunk.encoder)
    return trunk
