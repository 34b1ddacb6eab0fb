"""Embeddings: in the words of ``/predict``, and what came out in those of OpenAI."""

import base64
import struct
from typing import Any

from app.openai.schemas.embeddings import (
    EmbeddingList,
    EmbeddingRequest,
    EmbeddingRow,
    EmbeddingUsage,
)
from app.openai.services.targets import as_request, name_of, receipt_of
from app.schemas.predictions import PredictRequest
from app.services.predictions import EMBEDDING, Planned
from core.settings import Settings


def read_request(settings: Settings, body: EmbeddingRequest) -> PredictRequest:
    """Read a request.

    Args:
        settings: Which bases there are.
        body: The request.

    Returns:
        One row for ``/predict`` for each text.
    """
    texts = [body.input] if isinstance(body.input, str) else list(body.input)
    return as_request(settings, model=body.model, task=EMBEDDING, inputs=texts)


def as_list(body: EmbeddingRequest, planned: Planned, found: dict[str, Any]) -> EmbeddingList:
    """Shape what came out.

    Args:
        body: The request.
        planned: Its rows.
        found: ``outputs``, ``receipts`` and ``usage``.

    Returns:
        The answer.
    """
    tokens = int(found["usage"]["input_tokens"])
    vectors = [output["embedding"] for output in found["outputs"]]
    packs = body.encoding_format == "base64"
    return EmbeddingList(
        data=[
            EmbeddingRow(index=index, embedding=_pack(vector) if packs else vector)
            for index, vector in enumerate(vectors)
        ],
        model=name_of(planned),
        usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens),
        x_receipt=receipt_of(planned, found["receipts"][0]),
    )


def _pack(vector: list[float]) -> str:
    """32-bit floats, little-endian, in base64."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
