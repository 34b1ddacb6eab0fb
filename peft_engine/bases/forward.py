"""One forward of the trunk, whatever the family of the base."""

from typing import Any

from torch import Tensor

from peft_engine.bases.attention import joint_states, packed_states
from peft_engine.bases.base import Base
from peft_engine.parts.batching import Batch
from peft_engine.parts.joining import Joint
from peft_engine.parts.stacks import TwoStacks

# Legend of axes: B rows, T tokens, U tokens of the decoder, D width.


def hidden_states(base: Base, batch: Batch, *, embeddings: Tensor | None = None) -> Tensor:
    """Hidden states of a right-padded batch.

    Args:
        base: The base; the plan in force on its router decides which deltas act.
        batch: B rows.
        embeddings: (B, T, D) read in place of the tokens' own embeddings.

    Returns:
        (B, T, D) in the precision of the base; what stands at padding has no meaning. With two
        stacks those of the decoder, (B, U, D), where the batch has answers, else the encoder's.
    """
    if batch.packing is not None and embeddings is None:
        return packed_states(base.trunk, batch.packing)
    inputs: dict[str, Any] = (
        {"input_ids": batch.input_ids} if embeddings is None else {"inputs_embeds": embeddings}
    )
    if isinstance(base.trunk, TwoStacks):
        prompt = base.trunk.encode(attention_mask=batch.mask, **inputs)
        if batch.decoder_ids is None:
            return prompt
        return base.trunk.decode(
            batch.decoder_ids, prompt=prompt, prompt_mask=batch.mask, use_cache=False
        )
    if base.architecture == "causal":
        # Padding stands on the right, where no real token looks; without a mask attention takes
        # its fastest path.
        output = base.trunk(**inputs, use_cache=False)
    elif batch.type_ids is not None:
        output = base.trunk(**inputs, attention_mask=batch.mask, token_type_ids=batch.type_ids)
    else:
        output = base.trunk(**inputs, attention_mask=batch.mask)
    hidden: Tensor = output.last_hidden_state  # (B, T, D)
    return hidden


def joint_hidden_states(base: Base, joint: Joint) -> list[Tensor]:
    """Hidden states of several batches in one forward.

    Args:
        base: A base that ``joins``; the plan in force knows the same batches.
        joint: The batches.

    Returns:
        What ``hidden_states`` gives for each of them.
    """
    column = joint_states(
        base.trunk,
        joint,
        causal=base.architecture == "causal",
        first_position=_first_position(base),
    )
    return [
        own if strip.packing is None else strip.packing.spread(own[0])
        for strip, own in zip(joint.strips, joint.parts(column), strict=True)
    ]


def _first_position(base: Base) -> int:
    """Number of the first place of a row: RoBERTa and its kin begin behind the padding token."""
    embeddings = getattr(base.trunk, "embeddings", None)
    if hasattr(embeddings, "create_position_ids_from_input_ids"):
        return int(embeddings.padding_idx) + 1  # type: ignore[union-attr]
    return 0


def token_embeddings(base: Base, batch: Batch) -> Tensor:
    """Embeddings of the tokens alone, as ``hidden_states`` reads them.

    Args:
        base: The base.
        batch: B rows.

    Returns:
        (B, T, D), with a gradient where the table learns.
    """
    found: Tensor = base.trunk.get_input_embeddings()(batch.input_ids)  # type: ignore[operator]
    if isinstance(base.trunk, TwoStacks):
        # Encoders of Marian and Pegasus scale what they look up, and nothing that they are given;
        # those of BART and mBART leave that to their tables, and have no such attribute.
        found = found * float(getattr(base.trunk.encoder, "embed_scale", 1.0))
    return found
