"""What OpenAI has under ``/v1`` and this service does not, and what there is instead."""

from collections.abc import Mapping
from types import MappingProxyType

_TEXT_ONLY = "models here read and write text only"
_NO_TOOLS = "models here answer, and nothing runs tools for them"
_NOT_KEPT = "conversations are not kept: send the whole of one to POST /v1/chat/completions"
_TENANTS = "tenants and their keys are made by the service's owner (tunery tenants, POST /keys)"

FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        "agents": _NO_TOOLS,
        "assistants": _NOT_KEPT,
        "audio": _TEXT_ONLY,
        "chat/completions/": "answers are not kept, so none can be listed, looked up or changed",
        "chatkit": _NO_TOOLS,
        "containers": _NO_TOOLS,
        "content_provenance_checks": "receipts (x_receipt) tell which weights gave an answer",
        "conversations": _NOT_KEPT,
        "evals": "every job is tested on its test rows: metrics in GET /jobs/{id}",
        "fine_tuning/alpha": "jobs are supervised, and nothing is graded",
        "fine_tuning/checkpoints": "a checkpoint is asked by its tenant; tenants share nothing: "
        "GET /adapters/{id}/export and POST /adapters carry an adapter from one to another",
        "fine_tuning/model_limits": "GET /models tells how many tokens each base model reads",
        "images": _TEXT_ONLY,
        "live": _TEXT_ONLY,
        "moderations": "train a classifier of your own, and ask it by POST /v1/decisions",
        "organization": _TENANTS,
        "projects": _TENANTS,
        "realtime": _TEXT_ONLY,
        "responses": "conversations are answered by POST /v1/chat/completions",
        "safety": "nothing is watched here",
        "skills": _NO_TOOLS,
        "threads": _NOT_KEPT,
        "vaults": _NO_TOOLS,
        "vector_stores": "POST /v1/embeddings gives vectors; keep them where you like",
        "videos": _TEXT_ONLY,
    }
)
"""By the first words of a path behind ``/v1``; of one that ends with a slash only what is
behind it and the list of it are absent.

A family that is offered leaves this table; a test tells."""
