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
from typing import Any

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
_JOINED_BYTES = 1 << 19
"""Small tensors are hashed half a megabyte at a time: enough that a call costs little beside its
bytes, and of a size whose memory the allocator gives again instead of fetching new pages."""
_MOST_LAYOUTS = 64
"""A layout of 420 tensors takes about 0.3 MB; a server sees a few."""


@dataclass(frozen=True, eq=False)
class _Run:
    """Tensors that lie side by side in the file and have one type.

    Attributes:
        dtype: Their type.
        lo: First byte in the data of the file.
        hi: Byte after the last.
        pieces: Bytes of each in its buffer, and after each one those up to the next.
        templates: Tensors without memory that have the shapes of the pieces.
    """

    dtype: torch.dtype
    lo: int
    hi: int
    pieces: Sequence[int]
    templates: Sequence[Tensor]

    def places(self) -> Iterator[tuple[int, int]]:
        """First byte of each tensor in its buffer, and the byte after its last."""
        ends = [0, *itertools.accumulate(self.pieces)]
        return zip(ends[0:-1:2], ends[1::2], strict=True)


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
        return tuple(_align(run, data[run.lo : run.hi]).view(run.dtype) for run in self.runs)

    def tensors(self, buffers: Sequence[Tensor]) -> dict[str, Tensor]:
        """Make the tensors.

        Args:
            buffers: What ``buffers`` made.

        Returns:
            Views into them by name, sorted.
        """
        found: list[Tensor] = []
        for run, buffer in zip(self.runs, buffers, strict=True):
            pieces = torch._C._nn.unflatten_dense_tensors(buffer, list(run.templates))
            found += pieces[::2]
        return {name: found[place] for name, place in zip(self.names, self.order, strict=True)}

    def hashed(self, buffers: Sequence[Tensor]) -> Iterator[Stretch]:
        """Walk what a digest of the tensors covers: before each one its name, type and shape.

        Args:
            buffers: What ``buffers`` made.

        Yields:
            Stretches of bytes, in the order of ``names``.
        """
        # Slices of memoryviews: a view of torch's costs ten times as much, and there are hundreds.
        memories = [buffer.cpu().view(torch.uint8).numpy().data for buffer in buffers]
        waiting: list[Stretch] = []
        size = 0
        for label, (run, lo, hi) in zip(self.labels, self.places, strict=True):
            waiting += (label, memories[run][lo:hi])
            size += hi - lo
            if size >= _JOINED_BYTES:
                yield from _join(waiting)
                waiting, size = [], 0
        yield from _join(waiting)


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


def _read_layout(text: str) -> Layout:
    """The layout that a header tells, after the library has accepted it.

    Raises:
        ValueError: There are metadata twice, or a type that has no place here.
    """
    is_split = not text.startswith("{")
    fields: dict[str, Any] = json.loads("{" + text.lstrip(" ,") if is_split else text)
    if fields.pop(_METADATA, None) is not None and is_split:
        raise ValueError("metadata stand in the header twice")
    in_file = sorted(fields, key=lambda name: (*fields[name]["data_offsets"], name))
    unknown = {fields[name]["dtype"] for name in in_file} - set(_DTYPES)
    if unknown:
        raise ValueError(f"tensors of type {sorted(unknown)[0]} are not read")
    names = sorted(fields)
    order = {name: place for place, name in enumerate(in_file)}
    runs = list(_find_runs([fields[name] for name in in_file]))
    places = [
        (number, begin, end) for number, run in enumerate(runs) for begin, end in run.places()
    ]
    return Layout(
        bytes=max((field["data_offsets"][1] for field in fields.values()), default=0),
        names=names,
        order=[order[name] for name in names],
        labels=[_label(name, fields[name]) for name in names],
        places=[places[order[name]] for name in names],
        runs=runs,
    )


def _label(name: str, field: Mapping[str, Any]) -> bytes:
    """What a digest sees of a tensor beside its bytes."""
    return tensor_label(name, _DTYPES[field["dtype"]], tuple(field["shape"]))


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


def _find_runs(fields: Sequence[Mapping[str, Any]]) -> Iterator[_Run]:
    """Neighbours of one type, in the order of the file."""
    for kind, neighbours in itertools.groupby(fields, key=lambda field: field["dtype"]):
        own, dtype = list(neighbours), _DTYPES[kind]
        ends = [field["data_offsets"] for field in own]
        pieces: list[int] = []
        templates: list[Tensor] = []
        for field, (lo, hi) in zip(own, ends, strict=True):
            gap = (lo - hi) % _ALIGNED_BYTES
            pieces += (hi - lo, gap)
            templates += (
                torch.empty(field["shape"], device="meta"),
                torch.empty(gap // dtype.itemsize, device="meta"),
            )
        yield _Run(dtype, ends[0][0], ends[-1][1], pieces, templates)


def _align(run: _Run, data: Tensor) -> Tensor:
    """(bytes,) uint8 of a run, each tensor where torch would begin it."""
    if not any(run.pieces[1::2]):
        # nothing to move apart, as where all sizes are multiples of 64
        return data if data.data_ptr() % _ALIGNED_BYTES == 0 else data.clone()
    buffer = torch.zeros(sum(run.pieces), dtype=torch.uint8, device=data.device)
    places = buffer.split_with_sizes(list(run.pieces))[::2]
    torch._foreach_copy_(places, data.split_with_sizes(list(run.pieces[::2])))
    return buffer


def _join(parts: Sequence[Stretch]) -> Iterator[Stretch]:
    """Stretches of bytes as one: of one large tensor the bytes themselves."""
    if len(parts) == 2 and len(parts[1]) >= _JOINED_BYTES:
        yield from parts
    elif parts:
        yield b"".join(parts)
