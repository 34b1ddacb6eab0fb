"""A base model in memory: frozen, shared, and never edited by anybody."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
)
from transformers.utils.logging import disable_progress_bar

from peft_engine.bases.fingerprint import fingerprint_files
from peft_engine.bases.gguf import convert_gguf
from peft_engine.bases.pooling import Pooling, read_pooling
from peft_engine.bases.reference import BaseFiles, resolve_reference
from peft_engine.bases.text import TextEncoder
from peft_engine.errors import BaseModelError
from peft_engine.runtime import DTYPES, Precision, pick_device, pick_precision

Architecture = Literal["encoder", "causal", "encoder-decoder"]

# Legend of axes: B rows, T tokens, D width of the hidden state, V vocabulary.

_POSITION_OFFSET = {"roberta", "xlm-roberta", "camembert", "mpnet"}
"""Model types whose first two positions are reserved, so that they hold two tokens less."""


@dataclass(frozen=True)
class BaseInfo:
    """What can be said of a base without loading its weights."""

    name: str
    reference: str
    architecture: Architecture
    model_type: str
    fingerprint: str
    licence: str | None
    max_length: int
    directory: Path


@dataclass(frozen=True)
class Base:
    """A frozen base model, ready to compute.

    Attributes:
        info: Where it comes from and what identifies it.
        model: The transformer with its language head, if it has one. All weights frozen.
        trunk: The part of ``model`` that gives hidden states (B, T, D).
        text: Its tokenizer.
        pooling: How token features become one feature of a row.
        precision: Arithmetic of the weights.
        device: Where the weights are.
        hidden_size: D.
        parameters: Number of weights, shared ones counted once.
    """

    info: BaseInfo
    model: nn.Module = field(repr=False)
    trunk: nn.Module = field(repr=False)
    text: TextEncoder = field(repr=False)
    pooling: Pooling
    precision: Precision
    device: torch.device
    hidden_size: int
    parameters: int

    @property
    def name(self) -> str:
        """Name under which users know the base."""
        return self.info.name

    @property
    def reference(self) -> str:
        """Where the base was loaded from."""
        return self.info.reference

    @property
    def fingerprint(self) -> str:
        """Digest of weights, shape and tokenizer."""
        return self.info.fingerprint

    @property
    def architecture(self) -> Architecture:
        """Family of the transformer."""
        return self.info.architecture

    @property
    def max_length(self) -> int:
        """Longest row in tokens."""
        return self.info.max_length

    @property
    def template_digest(self) -> str:
        """Digest of how records become tokens."""
        return self.text.template_digest

    def vocabulary_logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token.

        Args:
            hidden: (N, D) hidden states of the positions that matter.

        Returns:
            (N, V) logits in fp32.
        """
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        return head(hidden).float()  # type: ignore[no-any-return]


def describe_base(
    reference: str, *, name: str, models_dir: Path, allow_hub: bool = False
) -> BaseInfo:
    """Identify a base without loading its weights (a GGUF file is converted on first use).

    Args:
        reference: See ``resolve_reference``.
        name: Name under which users know the base.
        models_dir: Folder for wheels, conversions and digests.
        allow_hub: Whether a hub id may be downloaded.

    Returns:
        The description.

    Raises:
        BaseModelError: It is not there or of no supported kind.
    """  # noqa: DOC502  raised below
    files = resolve_reference(reference, models_dir=models_dir, allow_hub=allow_hub)
    fingerprint = fingerprint_files(files, cache=models_dir / "fingerprints.json")
    directory = _ready_directory(files, fingerprint, models_dir)
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    return BaseInfo(
        name=name,
        reference=reference,
        architecture=_architecture(config),
        model_type=config.model_type,
        fingerprint=fingerprint,
        licence=files.licence,
        max_length=_max_length(config),
        directory=directory,
    )


def load_base(
    reference: str,
    *,
    name: str,
    models_dir: Path,
    device: str = "auto",
    precision: Literal["auto"] | Precision = "auto",
    allow_hub: bool = False,
) -> Base:
    """Load a base model and freeze it.

    Args:
        reference: ``pkg:NAME``, a folder, a GGUF file, or a hub id where allowed.
        name: Name under which users know the base.
        models_dir: Folder for wheels, conversions and digests.
        device: ``auto`` or a torch device.
        precision: ``auto``, ``fp32`` or ``bf16``.
        allow_hub: Whether a hub id may be downloaded.

    Returns:
        The base, in evaluation mode, all weights frozen.

    Raises:
        BaseModelError: It is not there, or the engine cannot compute with it.
    """  # noqa: DOC502  raised below
    info = describe_base(reference, name=name, models_dir=models_dir, allow_hub=allow_hub)
    tokenizer = AutoTokenizer.from_pretrained(
        info.directory, local_files_only=True, trust_remote_code=False
    )
    model, chosen = _load_model(info, device=pick_device(device), precision=precision)
    base = Base(
        info=info,
        model=model,
        trunk=_trunk(model, info),
        text=TextEncoder(tokenizer),
        pooling=read_pooling(info.directory, info.architecture),
        precision=chosen,
        device=pick_device(device),
        hidden_size=model.config.hidden_size,  # type: ignore[union-attr,arg-type]
        parameters=sum(weight.numel() for weight in model.parameters()),
    )
    if info.architecture == "causal":
        _check_vocabulary_logits(base)
    return base


def _ready_directory(files: BaseFiles, fingerprint: str, models_dir: Path) -> Path:
    if files.gguf is None:
        return files.directory
    return convert_gguf(files.gguf, fingerprint=fingerprint, models_dir=models_dir)


def _architecture(config: PretrainedConfig) -> Architecture:
    if config.is_encoder_decoder:
        raise BaseModelError(
            f"encoder-decoder bases ({config.model_type}) are not offered yet",
            code="base_unsupported",
            param="base_model",
        )
    names = " ".join(config.architectures or ())
    return "causal" if "CausalLM" in names or "LMHeadModel" in names else "encoder"


def _max_length(config: PretrainedConfig) -> int:
    positions = int(getattr(config, "max_position_embeddings", 0) or 2048)
    return positions - 2 if config.model_type in _POSITION_OFFSET else positions


def _load_model(
    info: BaseInfo, *, device: torch.device, precision: Literal["auto"] | Precision
) -> tuple[nn.Module, Precision]:
    disable_progress_bar()  # type: ignore[no-untyped-call]
    loader: Any = AutoModelForCausalLM if info.architecture == "causal" else AutoModel
    weights = sum(path.stat().st_size for path in info.directory.glob("*.safetensors")) // 4
    chosen = pick_precision(precision, device=device, parameters=weights)
    model: nn.Module = loader.from_pretrained(
        info.directory,
        dtype=DTYPES[chosen],
        attn_implementation=_attention(device, chosen),
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    model.requires_grad_(False)
    return model.eval().to(device), chosen


def _attention(device: torch.device, precision: Precision) -> str:
    """On CPUs without AMX the fused bf16 attention is 5 to 8 times slower than plain products."""
    return "eager" if device.type == "cpu" and precision == "bf16" else "sdpa"


def _trunk(model: nn.Module, info: BaseInfo) -> nn.Module:
    if info.architecture == "encoder":
        return model
    trunk = getattr(model, str(model.base_model_prefix), None)
    if not isinstance(trunk, nn.Module):
        raise BaseModelError(f"{info.name!r} has no trunk to hook", code="base_unsupported")
    return trunk


def _check_vocabulary_logits(base: Base) -> None:
    """Some families scale or cap their logits; without that another model would be trained.

    Raises:
        BaseModelError: The logits differ from the model's own.
    """
    ids = torch.arange(4, device=base.device).unsqueeze(0)  # (1, 4)
    with torch.no_grad():
        expected = base.model(input_ids=ids).logits.float()  # (1, 4, V)
        hidden = base.trunk(input_ids=ids).last_hidden_state  # (1, 4, D)
        found = base.vocabulary_logits(hidden[0])
    if not torch.allclose(expected[0], found, rtol=1e-2, atol=1e-2):
        raise BaseModelError(
            f"{base.info.model_type} models post-process their logits, which is not offered yet",
            code="base_unsupported",
            param="base_model",
        )
