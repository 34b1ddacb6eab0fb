"""A delta: the small tensors that a job trains, with a manifest that says what they are.

Immutable and addressed by content: the digest covers the manifest and every byte of every tensor,
so it can be computed again from the tensors that are resident on a device.

Tensor names are ``<site path>:<method>.<name>`` and ``head:<name>``.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakKeyDictionary, WeakSet

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import save as save_tensors
from torch import Tensor

from peft_engine.configs.manifest import DELTA_FORMAT, Manifest
from peft_engine.configs.methods import MethodConfig
from peft_engine.errors import DeltaError
from peft_engine.methods.protocol import Method
from peft_engine.methods.table import METHODS, SELECTORS
from peft_engine.parts.rows import check_rows
from peft_engine.parts.sites import Site
from peft_engine.parts.stacks import part_read
from peft_engine.tensor_file import Layout, read_tensor_file, tensor_label

HEAD = "head"
_LARGEST_VALUE = 1e30
"""Times any scale still finite in fp32 and bf16: infinity times zero would reach the rows of other
deltas in a shared product."""
_LATER_FIELDS_OF_HEADS = frozenset(
    {"hidden", "transitions", "outside_penalty", "threshold", "normalize"}
)
_METADATA_KEY = "tunery"
# safetensors keeps metadata in a hash map: with more than one key the bytes would not be stable.


@dataclass(frozen=True)
class Delta:
    """Tensors and manifest.

    Attributes:
        tensors: fp32 tensors by full name, and int32 ones for indices.
        manifest: What they are and where they belong.
        digest: ``sha256:…`` over both.
        buffers: Flat tensors that all of them are views into, of a delta that was read from a file.
        layout: Where they lie in the file, of such a delta.
    """

    tensors: Mapping[str, Tensor]
    manifest: Manifest
    digest: str
    buffers: tuple[Tensor, ...] = field(default=(), repr=False, compare=False)
    layout: Layout | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], manifest: Manifest) -> "Delta":
        """Make a delta and compute its digest.

        Args:
            tensors: fp32 tensors by full name, and int32 ones for indices.
            manifest: What they are.

        Returns:
            The delta.
        """
        kept = {name: tensors[name].detach().contiguous() for name in sorted(tensors)}
        return cls(kept, manifest, compute_digest(kept, manifest))

    @property
    def head(self) -> dict[str, Tensor]:
        """Tensors of the task head by short name; empty without a head."""
        prefix = f"{HEAD}:"
        return {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}

    @property
    def parameters(self) -> int:
        """Number of values, the head included; indices are no values."""
        own = self.tensors.values()
        return sum(tensor.numel() for tensor in own if tensor.is_floating_point())

    @property
    def head_parameters(self) -> int:
        """Number of values of the head alone."""
        return sum(tensor.numel() for tensor in self.head.values())

    @property
    def bytes(self) -> int:
        """Memory of all tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def tensor_items(self) -> Iterator[tuple[str, Tensor]]:
        """Walk all tensors by full name, sorted.

        Yields:
            Name and tensor.
        """
        yield from self.tensors.items()

    def at_sites(self) -> dict[str, dict[str, dict[str, Tensor]]]:
        """The tensors as ``{site path: {method: {name: tensor}}}``, without the head."""
        found: dict[str, dict[str, dict[str, Tensor]]] = {}
        for full_name, tensor in self.tensors.items():
            path, _, rest = full_name.partition(":")
            if path != HEAD:
                method, _, name = rest.partition(".")
                found.setdefault(path, {}).setdefault(method, {})[name] = tensor
        return found

    def to(self, device: torch.device) -> "Delta":
        """The same delta on another device.

        Args:
            device: Where to.

        Returns:
            A delta with the same digest, as it was computed before the move.
        """
        moved = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return Delta(moved, self.manifest, self.digest)


def tensor_name(path: str, method: str, name: str) -> str:
    """Full name of a tensor.

    Args:
        path: Path of the site in the trunk.
        method: Name of the method.
        name: Name of the tensor at the site.

    Returns:
        ``<path>:<method>.<name>``.
    """
    return f"{path}:{method}.{name}"


def compute_digest(tensors: Mapping[str, Tensor], manifest: Manifest) -> str:
    """Digest of what the tensors hold now, wherever they are.

    Args:
        tensors: Tensors by full name.
        manifest: What they are.

    Returns:
        ``sha256:`` and 64 hexadecimal digits.
    """
    digest = hashlib.sha256(_canonical(manifest).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(tensor_label(name, tensor.dtype, tuple(tensor.shape)))
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def _digest_of_buffers(layout: Layout, buffers: Sequence[Tensor], manifest: Manifest) -> str:
    """As ``compute_digest``, from buffers that hold all tensors, without a view of each."""
    digest = hashlib.sha256(_canonical(manifest).encode())
    for piece in layout.hashed(buffers):
        digest.update(piece)
    return f"sha256:{digest.hexdigest()}"


def save_delta(delta: Delta) -> bytes:
    """The file of a delta: the same delta gives the same bytes.

    Args:
        delta: The delta.

    Returns:
        A safetensors file with the manifest in its header.
    """
    tensors = {name: tensor.cpu() for name, tensor in delta.tensors.items()}
    return save_tensors(tensors, metadata={_METADATA_KEY: _canonical(delta.manifest)})


def load_delta(
    source: bytes | bytearray | memoryview | Path, *, device: torch.device | None = None
) -> Delta:
    """Read a delta and compute its digest.

    Args:
        source: The file or its content. On a CPU the tensors may lie in a bytearray or memoryview
            itself, which is not to be written to any more.
        device: Where the tensors go; None: the CPU.

    Returns:
        The delta; its digest is that of the tensors on the device.

    Raises:
        DeltaError: The file is no delta, is damaged, or has another format.
    """
    try:
        content = source.read_bytes() if isinstance(source, Path) else source
        file = read_tensor_file(content, device=device)
        found = json.loads(file.metadata[_METADATA_KEY])
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise DeltaError(
            f"this is not a readable delta file: {type(error).__name__}", code="delta_corrupt"
        ) from error
    stated = found.get("format") if isinstance(found, dict) else None
    if stated != DELTA_FORMAT:
        raise DeltaError(f"delta format {stated!r} is not {DELTA_FORMAT!r}", code="delta_corrupt")
    try:
        manifest = Manifest.model_validate(found)
    except ValidationError as error:
        raise DeltaError(
            f"the manifest of the delta is not valid: {error.error_count()} problems",
            code="delta_corrupt",
        ) from error
    buffers = file.layout.buffers(file.data)
    tensors = file.layout.tensors(buffers)
    digest = _digest_of_buffers(file.layout, buffers, manifest)
    return Delta(tensors, manifest, digest, buffers, file.layout)


def check_delta(
    delta: Delta, trunk: torch.nn.Module, *, fingerprint: str, template_digest: str
) -> None:
    """Refuse a delta that does not fit a base: every tensor used, every expected tensor present.

    Args:
        delta: The delta.
        trunk: The part of the base that gives hidden states.
        fingerprint: Fingerprint of the base.
        template_digest: How the base turns records into tokens.

    Raises:
        DeltaError: Another base or template (``base_mismatch``), or missing, surplus, misshapen or
            senseless tensors (``delta_corrupt``).
        ConfigError: A method finds no site, or one where the base cannot tell rows apart.
    """  # noqa: DOC502  raised below
    manifest = delta.manifest
    if manifest.base_fingerprint != fingerprint:
        raise DeltaError(
            f"this adapter was trained on {manifest.base_model} "
            f"({manifest.base_fingerprint[:19]}…), not on this base ({fingerprint[:19]}…)",
            code="base_mismatch",
            param="base_model",
        )
    if manifest.template_digest != template_digest:
        raise DeltaError(
            "this adapter was trained with another chat template of the base",
            code="base_mismatch",
            param="base_model",
        )
    expected = _expected(trunk, manifest)
    _check_forms(delta, expected)
    _check_values(delta, expected.sites)


_Form = tuple[torch.dtype, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class _Expected:
    """What deltas of one configuration must hold on one trunk.

    Attributes:
        sites: Sites of every method.
        forms: Type and shape of every tensor but the head's, by full name.
        fitting: Layouts of files that were found to hold exactly these.
    """

    sites: Sequence[tuple[MethodConfig, Site]]
    forms: Mapping[str, _Form]
    fitting: WeakSet[Layout] = field(default_factory=WeakSet)


_FOUND_SITES: WeakKeyDictionary[torch.nn.Module, dict[str, _Expected]] = WeakKeyDictionary()
"""By configuration, for each trunk: to walk the trunk takes as long as all other checks together,
and a server loads many deltas of few configurations."""
_MOST_CONFIGURATIONS = 256


def _expected(trunk: torch.nn.Module, manifest: Manifest) -> _Expected:
    """What a delta of this configuration must hold."""
    has_head = manifest.head is not None
    methods = "|".join(config.model_dump_json() for config in manifest.methods)
    kept, key = _FOUND_SITES.setdefault(trunk, {}), f"{has_head}|{methods}"
    found = kept.get(key)
    if found is None:
        found = _find_sites(trunk, manifest.methods, has_head=has_head)
        if len(kept) >= _MOST_CONFIGURATIONS:
            kept.clear()
        kept[key] = found
    return found


def _find_sites(
    trunk: torch.nn.Module, methods: Sequence[MethodConfig], *, has_head: bool
) -> _Expected:
    part = part_read(trunk, has_head=has_head)
    sites: list[tuple[MethodConfig, Site]] = []
    forms: dict[str, _Form] = {}
    for config in methods:
        method: Method = METHODS[config.type]
        selector = SELECTORS.get(config.type)
        choices = selector.choices if selector is not None else frozenset()
        for site in method.sites(part, config):
            sites.append((config, site))
            for name, shape in method.shapes(site, config).items():
                dtype = torch.int32 if name in choices else torch.float32
                forms[tensor_name(site.path, config.type, name)] = dtype, shape
    check_rows(trunk, (site for _, site in sites))
    return _Expected(sites, forms)


def _check_forms(delta: Delta, expected: _Expected) -> None:
    """Refuse a delta that lacks a tensor, has one too many, or one of another shape or type.

    A type that torch does not multiply with fp32 would end the forward of a whole batch.

    Raises:
        DeltaError: It is such.
    """
    if delta.layout is not None and delta.layout in expected.fitting:
        return  # its tensors are views with the names, types and shapes of the layout
    found = {name: (t.dtype, tuple(t.shape)) for name, t in delta.tensors.items()}
    heads = {name: form for name, form in found.items() if name.startswith(f"{HEAD}:")}
    wanted = {**expected.forms, **{n: (torch.float32, shape) for n, (_, shape) in heads.items()}}
    if wanted != found:
        wrong = sorted({name for name, _ in wanted.items() ^ found.items()})
        raise DeltaError(
            f"{len(wrong)} tensors are missing, surplus or of another shape or type, "
            f"the first is {wrong[0]!r}",
            code="delta_corrupt",
        )
    if delta.layout is not None:
        expected.fitting.add(delta.layout)


def _check_values(delta: Delta, sites: Iterable[tuple[MethodConfig, Site]]) -> None:
    """Refuse numbers that could reach rows of others, and indices that point nowhere.

    Raises:
        DeltaError: There are such.
    """
    if not _is_bounded(delta.buffers):
        _check_numbers(delta.tensors)
    if all(config.type not in SELECTORS for config in delta.manifest.methods):
        return
    found = delta.at_sites()
    for config, site in sites:
        selector = SELECTORS.get(config.type)
        if selector is not None and not selector.check(site, found[site.path][config.type]):
            raise DeltaError(
                f"the indices at {site.path!r} are out of range, unsorted or repeated",
                code="delta_corrupt",
            )


def _is_bounded(buffers: Sequence[Tensor]) -> bool:
    """Whether flat buffers are known to hold no number that ``_check_numbers`` refuses."""
    numbers = [buffer for buffer in buffers if buffer.is_floating_point() and buffer.numel()]
    # one pass without a copy; NaN becomes both the least and the largest, and is below no bound
    ends = [torch.stack(torch.aminmax(buffer)).abs() for buffer in numbers]
    return bool(buffers) and all(bool((end < _LARGEST_VALUE).all()) for end in ends)


def _check_numbers(tensors: Mapping[str, Tensor]) -> None:
    """Refuse numbers that could reach rows of others, and name the first tensor that has them.

    Raises:
        DeltaError: There are such.
    """
    numbers = {n: t for n, t in tensors.items() if t.is_floating_point() and t.numel()}
    # all in one call; NaN is no number below the bound either
    norms = torch._foreach_norm(list(numbers.values()), ord=float("inf")) if numbers else ()
    for name, largest in zip(numbers, torch.stack(norms).tolist() if norms else (), strict=True):
        if not largest < _LARGEST_VALUE:
            raise DeltaError(
                f"{name!r} holds values that are undefined or above {_LARGEST_VALUE:g}",
                code="delta_corrupt",
            )


def _canonical(manifest: Manifest) -> str:
    own = manifest.model_dump(mode="json")
    # Left out where they say nothing: deltas written before these fields keep their digests.
    if not own["parent_digest"]:
        del own["parent_digest"]
    if manifest.head is not None:
        fields = type(manifest.head).model_fields
        for name in fields.keys() & _LATER_FIELDS_OF_HEADS:
            if own["head"][name] == fields[name].default:
                del own["head"][name]
    return json.dumps(own, sort_keys=True, separators=(",", ":"))
