"""A tokenizer's JSON by which no text becomes a control token, or a token without an embedding."""

import json
import secrets
from collections.abc import Iterable

from tokenizers import Tokenizer

from peft_engine.errors import BaseModelError


def within_vocabulary(tokenizer: Tokenizer, vocabulary: int) -> str:
    """A tokenizer's JSON without the added tokens that a base has no embedding for.

    Some published bases have such tokens, for padding or pictures. On a GPU an index beyond a table
    ends the process and not the request, so no text may ever become one.

    Args:
        tokenizer: Of the base.
        vocabulary: How many embeddings the base has.

    Returns:
        The JSON.

    Raises:
        BaseModelError: Tokens of the model itself have no embedding.
    """  # noqa: DOC502  raised below
    if max(tokenizer.get_vocab(with_added_tokens=True).values()) < vocabulary:
        return tokenizer.to_str()
    check_ids(tokenizer.get_vocab(with_added_tokens=False).values(), vocabulary)
    parts = json.loads(tokenizer.to_str())
    parts["added_tokens"] = [t for t in parts["added_tokens"] if t["id"] < vocabulary]
    return json.dumps(parts)


def check_ids(ids: Iterable[int | None], vocabulary: int) -> None:
    """Refuse ids that are none of a base.

    Args:
        ids: What its tokenizer writes; None is passed over.
        vocabulary: How many embeddings the base has.

    Raises:
        BaseModelError: There are such.
    """
    largest = max((token for token in ids if token is not None), default=0)
    if largest >= vocabulary:
        raise BaseModelError(
            f"the tokenizer writes token {largest} and the base has {vocabulary} embeddings",
            code="base_unsupported",
        )


def hide_control_pieces(source: str) -> str:
    """A tokenizer's JSON in which no text is cut into a control token.

    A Unigram model (T5, mBART) has its control tokens among its pieces and would take them for the
    likeliest way to cut ``</s>``. Here these pieces have names that nobody can guess; whoever adds
    control tokens does so by id.

    Args:
        source: The JSON of the tokenizer.

    Returns:
        The JSON, changed only for such a model.
    """
    parts = json.loads(source)
    if parts["model"]["type"] != "Unigram":
        return source
    control = {token["content"] for token in parts["added_tokens"] if token["special"]}
    for entry in parts["model"]["vocab"]:
        if entry[0] in control:
            entry[0] = f"{secrets.token_hex(16)}{entry[0]}"
    parts["added_tokens"] = [token for token in parts["added_tokens"] if not token["special"]]
    return json.dumps(parts)
