"""From a delta to a file of any format, or to every reason why not."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from peft_engine.bases.base import Base
from peft_engine.delta import HEAD, Delta
from peft_engine.exchange.archives import pack
from peft_engine.exchange.findings import Findings
from peft_engine.exchange.gguf_lora import write_gguf
from peft_engine.exchange.hub_export import write_hub
from peft_engine.exchange.merged import write_merged
from peft_engine.exchange.peft_export import write_peft

ExportFormat = Literal["peft", "peft-portable", "adapterhub", "merged", "gguf"]
ExportedHead = Literal["keep", "leave-out"]

NOT_POSSIBLE = "export_not_possible"


@dataclass(frozen=True)
class Exported:
    """A file to give away.

    Attributes:
        path: Where it lies.
        suffix: How its name should end, with the dot.
    """

    path: Path
    suffix: str


def export_adapter(
    base: Base, delta: Delta, form: ExportFormat, scratch: Path, *, head: ExportedHead = "keep"
) -> Exported:
    """Write a delta in a foreign format.

    Args:
        base: The base of the delta; only read.
        delta: The delta, on any device.
        form: The format.
        scratch: An empty folder that the caller removes.
        head: ``leave-out``: only what acts on the base's hidden states. For heads that no class of
            transformers computes, and for those who use the features alone.

    Returns:
        A zip of the adapter's files, or the GGUF file.

    Raises:
        ExchangeError: The format cannot hold it; every reason is in ``problems``.
    """  # noqa: DOC502  raised below
    found, own = Findings(), delta.to(torch.device("cpu"))
    if head == "leave-out":
        own = _without_head(base, own, found)
        found.settle(NOT_POSSIBLE, f"the format {form} cannot hold this adapter")
    folder = scratch / "files"
    folder.mkdir()
    if form == "gguf":
        write_gguf(base, own, folder / "adapter.gguf", found)
    elif form == "adapterhub":
        write_hub(base, own, folder, found)
    elif form == "merged":
        write_merged(base, own, folder, found)
    else:
        write_peft(base, own, folder, found, portable=form == "peft-portable")
    found.settle(NOT_POSSIBLE, f"the format {form} cannot hold this adapter")
    if form == "gguf":
        return Exported(folder / "adapter.gguf", ".gguf")
    archive = scratch / "adapter.zip"
    pack(folder, archive)
    return Exported(archive, ".zip")


def _without_head(base: Base, delta: Delta, found: Findings) -> Delta:
    if delta.manifest.head is None:
        return delta
    if base.architecture == "encoder-decoder":
        found.refuse(
            "head_not_possible",
            "without its head it would be read as a delta of both stacks, and it acts on one",
            "head",
        )
    tensors = {n: t for n, t in delta.tensors.items() if not n.startswith(f"{HEAD}:")}
    return Delta.of(tensors, delta.manifest.model_copy(update={"head": None, "labels": None}))
