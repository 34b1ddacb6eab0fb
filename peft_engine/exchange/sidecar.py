"""A file of ours beside the foreign ones: what no field of theirs holds.

PEFT, AdapterHub, vLLM and LoRAX leave unknown files alone. Read again on import, so that labels and
lengths come back; a user's own words go before it.
"""

from pathlib import Path
from typing import Any

from peft_engine.delta import Delta
from peft_engine.exchange.findings import Findings
from peft_engine.exchange.folder import read_json

SIDECAR_FILE = "tunery.json"


def describe(delta: Delta) -> dict[str, Any]:
    """What a delta says of itself.

    Args:
        delta: The delta.

    Returns:
        Its digest and its manifest; the methods as they were trained, before any folding.
    """
    return {"digest": delta.digest, "manifest": delta.manifest.model_dump(mode="json")}


def read_sidecar(folder: Path, found: Findings) -> dict[str, Any]:
    """Read the file, where there is one.

    Args:
        folder: Folder of the adapter.
        found: Told when it cannot be read.

    Returns:
        The manifest as it stood there; empty without a file. Nothing of it is trusted.
    """
    if not (folder / SIDECAR_FILE).is_file():
        return {}
    manifest = read_json(folder / SIDECAR_FILE, found).get("manifest")
    return manifest if isinstance(manifest, dict) else {}
