"""Tensors of a safetensors file as views into few buffers, for whoever reads many files alike.

A server loads thousands of files whose headers name the same tensors at the same places. The first
file of a layout is read by the safetensors library, which refuses whatever is wrong with it; of the
next ones only what may differ is looked at: the metadata, the length and the bytes. Hundreds of
tensors then cost one copy and few calls, and the interpreter's lock is let go meanwhile, which the
thread that computes needs.

Each tensor begins where torch would begin one: kernels of some libraries add in another order when
it does not, and an adapter must answer with the same bits wherever its tensors come from.

Knows no delta and no manifest.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import deserialize, safe_open
from torch import Tensor

_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
Content = bytes | bytearray | memoryview
"""All of a file."""
Stretch = bytes | memoryview
"""Bytes that are hashed in one call."""

_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_OPENING = f'{{"{_METADATA}":'
"""How the library begins a header; with another beginning the whole header counts as the layout."""

_ALIGNED_BYTES = 64
"""Where torch begins the tensors that it makes on a CPU."""
_MOST_LAYOUTS = 64
"""A layout of 420 tensors takes about 0.3 MB; a server sees a few."""


@dataclass(frozen=True, eq=False)
class _Run:
    """Tensors that lie side by side in the file and have one type.

    Attributes:
        dtype: Their type.
        lo: First byte in the data of the file.
        hi: Byte after the last.
        sizes: Bytes of each.
        gaps: After each one the bytes up to the next in the run's buffer; empty where all of them
            begin as they should once the first does.
        templates: Tensors without memory that have the shapes of the views into the buffer: the
            tensors, or each tensor and its gap in turn.
    """

    dtype: torch.dtype
    lo: int
    hi: int
    sizes: Sequence[int]
    gaps: Sequence[int]
    templates: list[Tensor]

    def places(self) -> Iterator[tuple[int, int]]:
        """First byte of each tensor in the buffer, and the byte after its last."""
        begin = 0
        for size, gap in itertools.zip_longest(self.sizes, self.gaps, fillvalue=0):
            yield begin, begin + size
            begin += size + gap

    def buffer(self, data: Tensor) -> Tensor:
        """(values,) of the run's type from its (bytes,) uint8 of the file.

        ``data`` itself where all of them begin as torch would begin them, else a copy.
        """
        if not self.gaps:
            begins_well = data.data_ptr() % _ALIGNED_BYTES == 0
            return (data if begins_well else data.clone()).view(self.dtype)
        pieces = [*itertools.chain.from_iterable(zip(self.sizes, self.gaps, strict=True))]
        made = torch.zeros(sum(pieces), dtype=torch.uint8, device=data.device)
        places = made.split_with_sizes(pieces)[::2]
        torch._foreach_copy_(places, data.split_with_sizes(list(self.sizes)))
        return made.view(self.dtype)

    def tensors(self, buffer: Tensor) -> Sequence[Tensor]:
        """Views into the buffer, in the order of the file."""
        views: Sequence[Tensor] = torch._C._nn.unflatten_dense_tensors(buffer, self.templates)
        return views[::2] if self.gaps else views


@dataclass(frozen=True, eq=False)
class Layout:
    """Where each tensor lies in the data of a file.

    Attributes:
        bytes: Of the data.
        names: Sorted.
        order: ``order[i]`` is the place in the file of ``names[i]``.
        labels: What is hashed before each tensor, in the order of ``names``.
        places: Of each tensor in the order of ``names``: its run, its first byte in the run's
            buffer and the byte after its last.
        runs: In the order of the file.
    """

    bytes: int
    names: Sequence[str]
    order: Sequence[int]
    labels: Sequence[Stretch]
    places: Sequence[tuple[int, int, int]]
    runs: Sequence[_Run]

    def buffers(self, data: Tensor) -> tuple[Tensor, ...]:
        """Make the buffer of each run.

        Args:
            data: (bytes,) uint8, on any device.

        Returns:
            A flat tensor of the run's own type for each run, zero between its tensors: ``data``
            itself where all of them begin as they should, else a copy.
        """
        return tuple(run.buffer(data[run.lo : run.hi]) for run in self.runs)

    def tensors(self, buffers: Sequence[Tensor]) -> dict[str, Tensor]:
        """Make the tensors.

        Args:
            buffers: What ``buffers`` made.

        Returns:
            Views into them by name, sorted.
        """
        found: list[Tensor] = []
        for run, buffer in zip(self.runs, buffers, strict=True):
            found += run.tensors(buffer)
        return {name: found[place] for name, place in zip(self.names, self.order, strict=True)}

    def hashed(self, buffers: Sequence[Tensor]) -> Iterator[Stretch]:
        """Walk what a digest of the tensors covers: before each one its name, type and shape.

        Each tensor is a stretch of its own. Putting small ones together takes longer than hashing
        them apart, and the interpreter's lock is held for it.

        Args:
            buffers: What ``buffers`` made.

        Yields:
            Stretches of bytes, in the order of ``names``.
        """
        # Slices of memoryviews: a view of torch's costs ten times as much, and there are hundreds.
        memories = [buffer.cpu().view(torch.uint8).numpy().data for buffer in buffers]
        for label, (run, lo, hi) in zip(self.labels, self.places, strict=True):
            yield label
            yield memories[run][lo:hi]


@dataclass(frozen=True, eq=False)
class TensorFile:
    """A file in memory.

    Attributes:
        layout: What lies where.
        data: (bytes,) uint8 on the device that was asked for; on a CPU the file's own memory,
            where that may be written to.
        metadata: As it stands in the header.
    """

    layout: Layout
    data: Tensor
    metadata: Mapping[str, str]


_LAYOUTS: dict[str, Layout] = {}
"""Layouts that the library has accepted, by the text of the header without its metadata."""


def find_data(head: bytes) -> int:
    """Where the data of a file begins.

    Args:
        head: Its first 8 bytes; the file may be none.

    Returns:
        The number of the byte, perhaps beyond the end.
    """
    return _LENGTH_BYTES + int.from_bytes(head[:_LENGTH_BYTES], "little")


def read_tensor_file(content: Content, *, device: torch.device | None = None) -> TensorFile:
    """Read a file.

    Args:
        content: All of it. Of the last two the memory is used and must not be written to again;
            nothing is copied where the data begins at a multiple of 64 and its tensors do too.
        device: Where the data goes; None: the CPU.

    Returns:
        The file.

    Raises:
        SafetensorError: The library refuses the file.
        ValueError: The header is none of JSON, or of another kind than the library's.
    """  # noqa: DOC502  raised by the library
    begin = find_data(bytes(content[:_LENGTH_BYTES]))
    metadata, text = _split_header(content, begin)
    layout = _LAYOUTS.get(text)
    if layout is None:
        _ask_library(content, begin)
        layout = _read_layout(text)
        if len(_LAYOUTS) >= _MOST_LAYOUTS:
            _LAYOUTS.clear()
        _LAYOUTS[text] = layout
    if len(content) - begin != layout.bytes:
        raise ValueError(f"{len(content) - begin} bytes of data, not {layout.bytes}")
    data = _data_of(content, begin, layout.bytes)
    return TensorFile(layout, data if device is None else data.to(device), metadata)


def _ask_library(content: Content, begin: int) -> None:
    """Let the library refuse a header, or a length that does not fit it.

    It is shown a file with that header, as long and without data: given the bytes it would copy
    every tensor while it holds the interpreter's lock, for as long as a whole load takes.

    Raises:
        SafetensorError: It refuses.
    """  # noqa: DOC502  raised by the library
    try:
        with NamedTemporaryFile() as file:
            file.write(content[:begin])
            file.truncate(len(content))
            with safe_open(file.name, framework="np"):
                pass
    except OSError:  # no room for a header, or no folder for it: nothing is known of the content
        deserialize(bytes(content))  # type: ignore[no-untyped-call]


def _data_of(content: Content, begin: int, size: int) -> Tensor:
    """(size,) uint8."""
    if size and not memoryview(content).readonly:
        return torch.frombuffer(content, dtype=torch.uint8, offset=begin)
    data = torch.empty(size, dtype=torch.uint8)
    # By way of numpy: torch takes no memory that must not be written to, and bytes must not.
    data.numpy()[:] = np.frombuffer(content, np.uint8, offset=begin)
    return data


def _split_header(content: Content, begin: int) -> tuple[dict[str, str], str]:
    """Metadata, and the rest of the header's text.

    Raises:
        ValueError: The metadata are none.
    """
    text = bytes(content[_LENGTH_BYTES:begin]).decode()
    metadata: Any = {}
    if text.startswith(_OPENING):
        metadata, end = json.JSONDecoder().raw_decode(text, len(_OPENING))
        text = text[end:]
    else:
        header = json.loads(text)
        metadata = header.get(_METADATA, {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("metadata are texts by name")
    return metadata, text


class _Field(NamedTuple):
    """A tensor in a header; they sort as they lie in the file."""

    lo: int
    hi: int
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, told: Mapping[str, Any]) -> "_Field":
        """What a header tells under a name."""
        lo, hi = told["data_offsets"]
        return cls(lo, hi, name, _DTYPES[told["dtype"]], tuple(told["shape"]))


def _read_layout(text: str) -> Layout:
    """The layout that a header tells, after the library has accepted it.

    Raises:
        ValueError: There are metadata twice, or a type that has no place here.
    """
    is_split = not text.startswith("{")
    header: dict[str, Any] = json.loads("{" + text.lstrip(" ,") if is_split else text)
    if header.pop(_METADATA, None) is not None and is_split:
        raise ValueError("metadata stand in the header twice")
    unknown = {field["dtype"] for field in header.values()} - set(_DTYPES)
    if unknown:
        raise ValueError(f"tensors of type {sorted(unknown)[0]} are not read")
    in_file = sorted(_Field.of(name, told) for name, told in header.items())
    runs = list(_find_runs(in_file))
    places = [
        (number, begin, end) for number, run in enumerate(runs) for begin, end in run.places()
    ]
    order = sorted(range(len(in_file)), key=lambda place: in_file[place].name)
    by_name = [in_file[place] for place in order]
    return Layout(
        bytes=max((field.hi for field in in_file), default=0),
        names=[field.name for field in by_name],
        order=order,
        labels=[tensor_label(field.name, field.dtype, field.shape) for field in by_name],
        places=[places[place] for place in order],
        runs=runs,
    )


def tensor_label(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> bytes:
    """What a digest covers of a tensor before its bytes.

    Args:
        name: Its name.
        dtype: Its type.
        shape: Its shape.

    Returns:
        One line of text.
    """
    return f"\n{name}|{dtype}|{shape}|".encode()


def _find_runs(fields: Sequence[_Field]) -> Iterator[_Run]:
    """Neighbours of one type in the order of the file, those apart that are used where they lie.

    Of one type the first of an odd size is the last that its neighbours may lie beside as they do:
    all that come after it are moved. Heads come last, so that most of an adapter stays.
    """
    shapes = _Templates()
    for dtype, neighbours in itertools.groupby(fields, key=lambda field: field.dtype):
        own = list(neighbours)
        odd = (place for place, field in enumerate(own) if (field.hi - field.lo) % _ALIGNED_BYTES)
        kept = next(odd, len(own)) + 1
        yield _Run(
            dtype,
            lo=own[0].lo,
            hi=own[:kept][-1].hi,
            sizes=[field.hi - field.lo for field in own[:kept]],
            gaps=(),
            templates=[shapes[field.shape] for field in own[:kept]],
        )
        moved = own[kept:]
        if moved:
            yield _moved_run(dtype, moved, shapes)


class _Templates(dict[tuple[int, ...], Tensor]):
    """Tensors without memory by shape: layers are alike, so that there are few."""

    def __missing__(self, shape: tuple[int, ...]) -> Tensor:
        made = self[shape] = torch.empty(shape, device="meta")
        return made


def _moved_run(dtype: torch.dtype, fields: Sequence[_Field], shapes: _Templates) -> _Run:
    """Tensors that are copied, each to where torch would begin it."""
    sizes = [field.hi - field.lo for field in fields]
    gaps = [-size % _ALIGNED_BYTES for size in sizes]
    templates: list[Tensor] = []
    for field, gap in zip(fields, gaps, strict=True):
        templates += (shapes[field.shape], shapes[(gap // dtype.itemsize,)])
    return _Run(dtype, fields[0].lo, fields[-1].hi, sizes, gaps, templates)
