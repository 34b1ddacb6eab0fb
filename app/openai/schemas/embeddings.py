"""``POST /v1/embeddings``."""

from typing import Annotated, Any, Literal

from pydantic import Field

from app.openai.schemas.shared import Model, NotOffered, NullIsDefault
from app.schemas.predictions import Receipt
from app.schemas.shared import Sent, Text


class EmbeddingRequest(NullIsDefault):
    """Texts to embed."""

    model: Model = Field(
        description="An encoder, or an adapter on one, which is in force then.",
        examples=["minilm"],
    )
    input: Text | tuple[Text, ...] = Field(
        min_length=1,
        description="One text or several; tokens are not taken.",
        examples=["My card has not arrived"],
    )
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="`base64`: 32-bit floats, little-endian. The client asks for it."
    )
    user: Text | None = Field(
        None, max_length=512, description="Your own name for who asks; no answer depends on it."
    )
    dimensions: Annotated[Any, NotOffered("embeddings are as wide as the base")] = None


class EmbeddingRow(Sent):
    """The embedding of one text."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(
        description="Unit length; the cosine of two texts is the sum of the products."
    )


class EmbeddingUsage(Sent):
    """Tokens read over all texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Sent):
    """Embeddings in the order of the texts."""

    object: Literal["list"] = "list"
    data: list[EmbeddingRow]
    model: str = Field(description="Who answered: `name@version`, or the base.")
    usage: EmbeddingUsage
    x_receipt: Receipt = Field(description="Proof of which weights answered.")
