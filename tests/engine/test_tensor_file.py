"""Files of one layout are read alike the first time and later, and refused alike."""

import errno
import json
from typing import NoReturn

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from core.storage.buffers import make_buffer
from peft_engine import tensor_file
from peft_engine.bases.base import Base
from peft_engine.configs.methods import LoraConfig, MaskConfig
from peft_engine.delta import check_delta, compute_digest, load_delta, save_delta
from peft_engine.errors import DeltaError
from peft_engine.tensor_file import find_data, read_tensor_file
from tests.engine.conftest import make_delta


def make_tensors(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {
        "wide": torch.randn(3, 300_000),  # hashed by itself
        "b.indices": torch.arange(5, dtype=torch.int32),
        "a.half": torch.randn(3).to(torch.bfloat16),
        "a.single": torch.randn(2, 2, 2),
        "empty": torch.zeros(0, 4),
        "flags": torch.tensor([True, False, True]),
        "one": torch.tensor(1.5),
    }


def read(content: bytes | bytearray | memoryview) -> dict[str, Tensor]:
    file = read_tensor_file(content)
    return file.layout.tensors(file.layout.buffers(file.data))


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("metadata", [None, {"a": "1"}])
def test_tensors_are_those_of_the_library(
    kind: type[bytes], metadata: dict[str, str] | None
) -> None:
    for seed in range(3):  # the first makes the layout known, and the last brings other metadata
        more = metadata and metadata | {"seed": str(seed)}
        content = kind(save_tensors(make_tensors(seed), metadata=more))
        expected, found = load_tensors(bytes(content)), read(content)
        assert list(found) == sorted(expected)
        for name, tensor in found.items():
            assert tensor.dtype == expected[name].dtype
            assert torch.equal(tensor, expected[name])
            assert tensor.shape == expected[name].shape
        assert read_tensor_file(content).metadata == (more or {})


def in_buffer(content: bytes, *, aligned: int) -> memoryview:
    buffer = make_buffer(len(content), aligned=aligned)
    buffer[:] = content
    return buffer


@pytest.mark.parametrize("kind", ["bytes", "aligned", "not aligned"])
@pytest.mark.parametrize("are_all_even", [False, True])
def test_each_tensor_begins_where_torch_would_begin_it(kind: str, are_all_even: bool) -> None:
    """A product may add in another order over memory that begins elsewhere."""
    tensors = {"x": torch.randn(16), "y": torch.randn(8, 32)} if are_all_even else make_tensors(0)
    content: bytes | memoryview = save_tensors(tensors, metadata={"a": "1"})
    whole = bytes(content)
    if kind != "bytes":
        content = in_buffer(whole, aligned=find_data(whole) + (kind != "aligned"))
    found = read(content)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in found.values())
    for tensor in found.values():
        tensor.zero_()
    assert content == whole or kind == "aligned"


def test_only_what_lies_badly_is_moved() -> None:
    """The file's own memory is used up to the first tensor of an odd size, and that one too."""
    sizes = {"a": 16, "b": 32, "c": 5, "d": 16, "e": 3}
    tensors = {name: torch.ones(size) for name, size in sizes.items()}
    whole = save_tensors(tensors)
    content = in_buffer(whole, aligned=find_data(whole))
    for tensor in read(content).values():
        tensor.zero_()
    left = load_tensors(bytes(content))
    assert {name: float(tensor.sum()) for name, tensor in left.items()} == {
        "a": 0, "b": 0, "c": 0, "d": 16, "e": 3
    }  # fmt: skip


@pytest.mark.parametrize("size", [4, 16])
def test_every_write_is_counted(size: int) -> None:
    """Whether a tensor was moved or not: receipts ask each of them."""
    found = read(bytearray(save_tensors({"x": torch.zeros(size), "y": torch.zeros(2)})))
    for tensor in found.values():
        before = tensor._version
        tensor.add_(1)
        assert tensor._version == before + 1


def with_header(content: bytes, header: str) -> bytes:
    begin = 8 + int.from_bytes(content[:8], "little")
    return len(header).to_bytes(8, "little") + header.encode() + content[begin:]


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize(
    "damage", ["shorter", "longer", "metadata a number", "metadata twice", "a list", "no text"]
)
def test_what_is_wrong_is_refused_whether_the_layout_is_known_or_not(
    damage: str, is_known: bool
) -> None:
    rows = 7 if is_known else 11  # layouts of this test alone
    content = save_tensors({"x": torch.ones(rows)}, metadata={"a": "1"})
    if is_known:
        read(content)
    header = content[8 : 8 + int.from_bytes(content[:8], "little")].decode()
    broken = {
        "shorter": content[:-1],
        "longer": content + b"\0",
        "metadata a number": with_header(content, header.replace('"1"', "123")),
        "metadata twice": with_header(
            content, '{"__metadata__":{"a":"1"},' + header.removeprefix("{")
        ),
        "a list": with_header(content, "[]"),
        "no text": content[:8] + b"\xff" * len(header) + content[8 + len(header) :],
    }[damage]
    with pytest.raises((ValueError, SafetensorError)):
        read_tensor_file(broken)


def test_without_room_for_temporary_files_the_library_is_given_the_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full() -> NoReturn:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(tensor_file, "NamedTemporaryFile", full)
    content = save_tensors({"x": torch.ones(13)})  # a layout of this test alone
    assert torch.equal(read(content)["x"], torch.ones(13))
    with pytest.raises(SafetensorError):
        read(save_tensors({"x": torch.ones(14)})[:-1])


def test_headers_in_another_order_are_read() -> None:
    content = save_tensors({"x": torch.ones(2)}, metadata={"a": "1"})
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    turned = with_header(content, json.dumps(dict(reversed(header.items()))))
    assert torch.equal(read(turned)["x"], torch.ones(2))
    assert read_tensor_file(turned).metadata == {"a": "1"}


def test_the_digest_of_a_file_is_that_of_its_tensors(bert: Base) -> None:
    configs = (LoraConfig(r=4, alpha=8), MaskConfig(selection="random", density=0.01))
    for seed in range(2):
        delta = make_delta(bert, seed=seed, config=configs, labels=("no", "yes"))
        content = save_delta(delta)
        for source in (content, bytearray(content), in_buffer(content, aligned=find_data(content))):
            found = load_delta(source)
            assert found.digest == delta.digest
            assert found.digest == compute_digest(found.tensors, found.manifest)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30])
def test_senseless_numbers_are_refused_by_name(bert: Base, value: float) -> None:
    found = load_delta(bytearray(save_delta(make_delta(bert, seed=1))))
    name, tensor = list(found.tensors.items())[5]
    tensor.view(-1)[-1] = value
    with pytest.raises(DeltaError, match="undefined or above") as caught:
        check_delta(
            found, bert.trunk, fingerprint=bert.fingerprint, template_digest=bert.template_digest
        )
    assert name in caught.value.message
