"""From hidden states to scores of the next token, as each family has it."""

import torch
from torch import Tensor, nn

from peft_engine.errors import BaseModelError
from peft_engine.parts.stacks import TwoStacks

# Legend of axes: N positions, T tokens, D width, V vocabulary.


def project(model: nn.Module, hidden: Tensor) -> Tensor:
    """Scores of the next token.

    Args:
        model: A transformer with a language head.
        hidden: (N, D) hidden states of the positions that matter.

    Returns:
        (N, V) logits in fp32.
    """
    # T5 keeps the width of its table out of the logits when the table is the language head.
    if getattr(model.config, "scale_decoder_outputs", False):
        hidden = hidden * model.config.d_model**-0.5  # type: ignore[union-attr,operator]
    logits: Tensor = model.get_output_embeddings()(hidden).float()  # type: ignore[operator]
    # BART and its cousins; Marian's is trained.
    bias = getattr(model, "final_logits_bias", None)
    return logits if bias is None else logits + bias.float()


def check_projection(model: nn.Module, trunk: nn.Module) -> None:
    """Refuse a base whose own logits are not ours: another model would be trained.

    Args:
        model: A transformer with a language head.
        trunk: The part of it that gives hidden states.

    Raises:
        BaseModelError: It scales or caps its logits in a way that is not known here
            (``base_unsupported``).
    """
    ids = torch.arange(4, device=next(model.parameters()).device).unsqueeze(0)  # (1, 4)
    with torch.no_grad():
        if isinstance(trunk, TwoStacks):
            expected = model(input_ids=ids, decoder_input_ids=ids).logits.float()  # (1, 4, V)
            real = torch.ones_like(ids)
            prompt = trunk.encode(input_ids=ids, attention_mask=real)
            hidden = trunk.decode(ids, prompt=prompt, prompt_mask=real)  # (1, 4, D)
        else:
            expected = model(input_ids=ids).logits.float()  # (1, 4, V)
            hidden = trunk(input_ids=ids).last_hidden_state  # (1, 4, D)
        found = project(model, hidden[0])
    if not torch.allclose(expected[0], found, rtol=1e-2, atol=1e-2):
        raise BaseModelError(
            f"{model.config.model_type} models post-process their logits, "  # type: ignore[union-attr]
            "which is not offered yet",
            code="base_unsupported",
            param="base_model",
        )
