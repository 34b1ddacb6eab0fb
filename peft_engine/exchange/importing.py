"""From a folder of any format to a delta on a base, or to every reason why not."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from peft_engine.bases.base import Base
from peft_engine.configs.manifest import Manifest
from peft_engine.configs.methods import HeadOnlyConfig
from peft_engine.delta import HEAD, Delta, check_delta, load_delta
from peft_engine.errors import ConfigError, DeltaError, ExchangeError
from peft_engine.exchange.findings import Findings
from peft_engine.exchange.folder import read_json
from peft_engine.exchange.heads import HeadWishes
from peft_engine.exchange.hub_import import read_hub
from peft_engine.exchange.native import read_native
from peft_engine.exchange.peft_import import CONFIG_FILE, ReadAdapter, read_peft
from peft_engine.exchange.sidecar import read_sidecar

Format = Literal["native", "peft", "adapterhub"]

INVALID = "adapter_invalid"
_REFUSED = "this adapter cannot be imported"
_FACTS: Mapping[Format, tuple[str, ...]] = MappingProxyType(
    {
        "native": (),
        "peft": ("peft_type", "peft_version"),
        "adapterhub": ("version", "model_name"),
    }
)
"""What is kept of the configuration."""


@dataclass(frozen=True)
class ImportOptions:
    """What the files do not say, and the user may.

    Attributes:
        labels: Names of the classes in their order.
        multi_label: Whether a text may have any number of labels.
        max_length: Longest row in tokens; None: what the files say, else what the base holds.
    """

    labels: tuple[str, ...] | None = None
    multi_label: bool | None = None
    max_length: int | None = None


@dataclass(frozen=True)
class Imported:
    """An adapter that was brought along.

    Attributes:
        delta: On the CPU.
        format: What it came as.
        notes: What was decided for the user.
        origin: Facts of the file: its kind, version and base.
    """

    delta: Delta
    format: Format
    notes: tuple[str, ...]
    origin: dict[str, Any]


def find_adapter(folder: Path) -> Path:
    """Where in an unpacked archive the adapter lies: at the top, or in its only folder.

    Args:
        folder: The unpacked archive.

    Returns:
        The folder with the adapter's files.
    """
    while not list(_markers(folder)):
        inner = [child for child in sorted(folder.iterdir()) if child.is_dir()]
        if len(inner) != 1:
            return folder
        folder = inner[0]
    return folder


def is_native(folder: Path) -> bool:
    """Whether an adapter is a native file, which names the fingerprint of its base.

    Args:
        folder: From ``find_adapter``.

    Returns:
        False for foreign formats.
    """
    return not (folder / CONFIG_FILE).is_file() and _native_file(folder) is not None


def read_base_hint(folder: Path) -> str | None:
    """Name of the base that the files state.

    Args:
        folder: From ``find_adapter``.

    Returns:
        A name, path or hub id; None when they state none.
    """
    if not (folder / CONFIG_FILE).is_file():
        native = _native_file(folder)
        return None if native is None else load_delta(native).manifest.base_model
    config = read_json(folder / CONFIG_FILE, Findings())
    stated = config.get("base_model_name_or_path") or config.get("model_name")
    return stated if isinstance(stated, str) else None


def import_adapter(base: Base, folder: Path, options: ImportOptions) -> Imported:
    """Read an adapter.

    Args:
        base: The base that it belongs to.
        folder: From ``find_adapter``.
        options: What the files do not say.

    Returns:
        The adapter as a delta that the base can answer with.

    Raises:
        ExchangeError: It cannot be held here; every reason is in ``problems``.
    """
    found = Findings()
    native = _native_file(folder)
    if native is not None and not (folder / CONFIG_FILE).is_file():
        return _import_native(base, native)
    config = read_json(folder / CONFIG_FILE, found)
    found.settle(INVALID, _REFUSED)
    sidecar = read_sidecar(folder, found)
    wishes = _wishes(options, sidecar)
    form: Format = "peft" if "peft_type" in config else "adapterhub"
    read = None
    if form == "adapterhub" and "config" not in config:
        found.refuse("unsupported_kind", "is neither of HF PEFT nor of AdapterHub", CONFIG_FILE)
    else:
        reader = read_peft if form == "peft" else read_hub
        try:
            read = reader(base, folder, config, wishes, found)
        except ConfigError as error:  # the kind needs to know parts that this family does not name
            found.refuse("unsupported_kind", error.message)
    found.settle(INVALID, _REFUSED)
    if read is None:
        raise ExchangeError(_REFUSED, code=INVALID, problems=())
    delta = _assemble(base, read, options, sidecar)
    facts = _FACTS[form]
    return Imported(delta, form, tuple(found.notes), {fact: config.get(fact) for fact in facts})


def _assemble(
    base: Base, read: ReadAdapter, options: ImportOptions, sidecar: dict[str, Any]
) -> Delta:
    tensors, head = dict(read.part.tensors), read.head
    if head is not None:
        tensors |= {f"{HEAD}:{name}": tensor for name, tensor in head.tensors.items()}
    told = sidecar.get("max_length")
    length = options.max_length or (told if isinstance(told, int) else base.max_length)
    manifest = Manifest(
        base_model=base.name,
        base_fingerprint=base.fingerprint,
        architecture=base.architecture,
        precision=base.precision,
        task=read.task,
        methods=tuple(read.part.methods) or (HeadOnlyConfig(),),
        labels=None if head is None else head.labels,
        head=None if head is None else head.spec,
        template_digest=base.template_digest,
        max_length=max(1, min(length, base.max_length)),
    )
    delta = Delta.of(tensors, manifest)
    _check(base, delta)
    return delta


def _check(base: Base, delta: Delta) -> None:
    """The same check as before serving: what passes here is answered with."""
    try:
        check_delta(
            delta, base.trunk, fingerprint=base.fingerprint, template_digest=base.template_digest
        )
    except (DeltaError, ConfigError) as error:
        found = Findings()
        found.refuse(error.code, error.message)
        found.settle(INVALID, _REFUSED)


def _wishes(options: ImportOptions, sidecar: dict[str, Any]) -> HeadWishes:
    labels, told = options.labels, sidecar.get("labels")
    if labels is None and isinstance(told, list) and all(isinstance(one, str) for one in told):
        labels = tuple(told)
    head = sidecar.get("head")
    kind = head.get("kind") if isinstance(head, dict) else None
    many = options.multi_label
    return HeadWishes(labels, kind == "multi-label" if many is None else many)


def _import_native(base: Base, path: Path) -> Imported:
    found = Findings()
    delta = read_native(base, path, found)
    found.settle(INVALID, _REFUSED)
    if delta is None:
        raise ExchangeError(_REFUSED, code=INVALID, problems=())
    return Imported(delta, "native", (), {"digest": delta.digest})


def _native_file(folder: Path) -> Path | None:
    files = sorted(folder.glob("*.safetensors"))
    return files[0] if len(files) == 1 else None


def _markers(folder: Path) -> list[Path]:
    names = [folder / CONFIG_FILE, *folder.glob("*.safetensors")]
    return [path for path in names if path.is_file()]
