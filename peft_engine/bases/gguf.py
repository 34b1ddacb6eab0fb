"""A GGUF file is dequantised once and kept as safetensors: the second start takes a blink."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

_DONE = "model.safetensors"


def convert_gguf(gguf: Path, *, fingerprint: str, models_dir: Path) -> Path:
    """Folder with the dequantised model, made when it is not there yet.

    Several processes may ask at once; one converts and the others wait for it. A conversion that
    is killed leaves nothing that could be taken for a model.

    Args:
        gguf: The GGUF file.
        fingerprint: ``sha256:…`` of the file, which names the folder.
        models_dir: Where conversions are kept, below ``converted``.

    Returns:
        Folder with ``config.json``, ``model.safetensors`` (fp32) and the tokenizer.
    """
    root = models_dir / "converted"
    root.mkdir(parents=True, exist_ok=True)
    target = root / fingerprint.removeprefix("sha256:")
    if (target / _DONE).is_file():
        return target
    with _locked(root / f".{target.name}.lock"):
        if not (target / _DONE).is_file():
            with TemporaryDirectory(dir=root, prefix=".converting-") as folder:
                _dequantise(gguf, Path(folder) / "model")
                (Path(folder) / "model").rename(target)
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _dequantise(gguf: Path, target: Path) -> None:
    disable_progress_bar()  # type: ignore[no-untyped-call]
    source = {"gguf_file": gguf.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
    # transformers refuses to save what it believes is still quantized; the weights no longer are.
    setattr(model, "hf_quantizer", None)  # noqa: B010  not in the type stubs
    setattr(model, "is_quantized", False)  # noqa: B010
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
