"""A base model in memory: frozen, shared, and never edited by anybody."""

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
)
from transformers.utils.logging import disable_progress_bar

from peft_engine.bases.attention import Implementation, install_attention, packs_exactly
from peft_engine.bases.fingerprint import fingerprint_files
from peft_engine.bases.gguf import convert_gguf
from peft_engine.bases.pooling import Pooling, read_pooling
from peft_engine.bases.reference import BaseFiles, resolve_reference
from peft_engine.bases.text import TextEncoder
from peft_engine.bases.vocabulary import check_projection, project
from peft_engine.configs.base import BaseConfig
from peft_engine.configs.families import Architecture
from peft_engine.errors import BaseModelError
from peft_engine.parts.rows import find_mixed
from peft_engine.parts.stacks import TwoStacks
from peft_engine.runtime import DTYPES, Precision, pick_device, pick_precision

# Legend of axes: B rows, T tokens, D width of the hidden state, V vocabulary.

_LOADERS: Mapping[Architecture, Any] = {
    "encoder": AutoModel,
    "causal": AutoModelForCausalLM,
    "encoder-decoder": AutoModelForSeq2SeqLM,
}

_POSITION_OFFSET = {"roberta", "xlm-roberta", "camembert", "mpnet"}
"""Model types whose first two positions are reserved, so that they hold two tokens less."""


_READING = threading.Lock()
"""Held while transformers makes a model. It changes functions of torch meanwhile and puts back what
it found: two at a time would leave them changed for good."""

_AS_PUBLISHED = BaseConfig()


@dataclass(frozen=True)
class BaseInfo:
    """What can be said of a base without loading its weights.

    Attributes:
        name: Name under which users know it; of a derived base ``parent@derivation``.
        fingerprint: Digest of weights, shape and tokenizer, or of how they are derived.
        derivation: What is done to the weights once they are loaded.
        parent_fingerprint: Of the base as published, where this one is derived from it.
    """

    name: str
    reference: str
    architecture: Architecture
    model_type: str
    fingerprint: str
    licence: str | None
    max_length: int
    directory: Path
    derivation: BaseConfig = _AS_PUBLISHED
    parent_fingerprint: str | None = None


@dataclass(frozen=True)
class Base:
    """A frozen base model, ready to compute.

    Attributes:
        info: Where it comes from and what identifies it.
        model: The transformer with its language head, if it has one. All weights frozen.
        trunk: The part of ``model`` that gives hidden states (B, T, D): of an encoder-decoder base
            its ``TwoStacks``.
        text: Its tokenizer.
        pooling: How token features become one feature of a row.
        precision: Arithmetic of the weights.
        device: Where the weights are.
        hidden_size: D.
        parameters: Number of weights, shared ones counted once.
        packs: Whether rows may be packed; see ``peft_engine.parts.packing``.
        joins: Whether several batches may go through it at once; see ``peft_engine.parts.joining``.
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
    packs: bool = False
    joins: bool = False

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
        """Longest row in tokens; with two stacks each of them holds as many."""
        return self.info.max_length

    @property
    def bytes(self) -> int:
        """Bytes of the weights in memory, shared ones counted once."""
        return count_bytes(self.model)

    @property
    def generates(self) -> bool:
        """Whether it writes text by itself."""
        return self.info.architecture != "encoder"

    @property
    def tells_texts_apart(self) -> bool:
        """Whether a forward is told which text a token belongs to; see ``looks_up_types``."""
        return looks_up_types(self.model.config, self.text)  # type: ignore[arg-type]

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
        return project(self.model, hidden)

    def answer_room(self, prompt_tokens: int) -> int:
        """Tokens that an answer may have.

        Args:
            prompt_tokens: Length of its prompt.

        Returns:
            What the prompt leaves of the context; with two stacks all of the decoder's but what
            every answer starts with.
        """
        if self.text.answer_start is None:
            return self.max_length - prompt_tokens
        return self.max_length - len(self.text.answer_start)


def looks_up_types(config: PretrainedConfig, text: TextEncoder) -> bool:
    """Whether a forward is told which text of a pair a token belongs to, as BERT's is.

    The tokenizer writes it for every base of the family, also for one that was trained on single
    texts and whose table has one type: to look up another would end the process of a CUDA device.
    Such a base reads a pair as RoBERTa does.

    Args:
        config: Of the base.
        text: Its tokenizer.

    Returns:
        True for a BERT whose table has every type that the tokenizer writes.
    """
    types = getattr(config, "type_vocab_size", 0)
    return config.model_type == "bert" and int(types) >= text.text_types


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
    with _telling_what_is_unsupported(name):
        config = AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
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
    return load_described(info, device=device, precision=precision)


def load_described(
    info: BaseInfo,
    *,
    device: str = "auto",
    precision: Literal["auto"] | Precision = "auto",
    change: Callable[[Base], Base] | None = None,
) -> Base:
    """Load the base that a description names.

    Args:
        info: Of a base as published.
        device: ``auto`` or a torch device.
        precision: ``auto``, ``fp32`` or ``bf16``.
        change: Makes a derived base: given a base that nobody else has, in fp32 on the CPU, it may
            change its weights and modules. Then they get their arithmetic and their device.

    Returns:
        The base, in evaluation mode, all weights frozen.

    Raises:
        BaseModelError: The engine cannot compute with it.
    """  # noqa: DOC502  raised below
    with _telling_what_is_unsupported(info.name):
        tokenizer = AutoTokenizer.from_pretrained(
            info.directory, local_files_only=True, trust_remote_code=False
        )
    place = pick_device(device)
    chosen = _pick_precision(info, place, precision)
    changes = change is not None
    begun: tuple[torch.device, Precision] = (torch.device("cpu"), "fp32")
    first_place, first = begun if changes else (place, chosen)
    model, attention = _load_model(info, dtype=DTYPES[first], attention=_attention(place, chosen))
    model = model.to(first_place)
    base = Base(
        info=info,
        model=model,
        trunk=_trunk(model, info),
        text=TextEncoder(
            tokenizer,
            vocabulary=model.get_input_embeddings().num_embeddings,  # type: ignore[operator]
            answer_start=_answer_start(model, info),
        ),
        pooling=read_pooling(info.directory, info.architecture),
        precision=first,
        device=first_place,
        hidden_size=model.config.hidden_size,  # type: ignore[union-attr,arg-type]
        parameters=sum(weight.numel() for weight in model.parameters()),
    )
    if base.generates:
        check_projection(base.model, base.trunk)
    if info.architecture != "encoder-decoder":
        joins = install_attention(base.trunk, attention)
        packs = joins and info.architecture == "causal" and packs_exactly(base.trunk)
        base = replace(base, joins=joins, packs=packs)
    find_mixed(base.trunk)
    if change is None:
        return base
    base = change(base)
    move_model(base.model, device=place, dtype=DTYPES[chosen])
    return replace(base, precision=chosen, device=place)


def move_model(model: nn.Module, *, device: torch.device, dtype: torch.dtype) -> None:
    """Move a model in place; buffers that several modules share stay one, as parameters do.

    torch moves buffers module by module: the quantized token table of a base with two stacks would
    be three afterwards.

    Args:
        model: The model.
        device: Where to.
        dtype: Of its floating point weights.
    """
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            owners.setdefault(id(buffer), []).append((module, name))
    model.to(device=device, dtype=dtype)
    for (first, name), *others in owners.values():
        for module, own_name in others:
            setattr(module, own_name, getattr(first, name))


def count_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights in memory.

    Args:
        model: A model, perhaps with modules that keep their weight in a form of their own and say
            by ``weight_bytes`` how much it takes.

    Returns:
        Parameters and buffers, each once however many modules share it.
    """
    tensors = {tensor.data_ptr(): tensor for tensor in [*model.parameters(), *model.buffers()]}
    plain = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return plain + sum(int(getattr(module, "weight_bytes", 0)) for module in model.modules())


def _ready_directory(files: BaseFiles, fingerprint: str, models_dir: Path) -> Path:
    if files.gguf is None:
        return files.directory
    return convert_gguf(files.gguf, fingerprint=fingerprint, models_dir=models_dir)


def _architecture(config: PretrainedConfig) -> Architecture:
    if config.is_encoder_decoder:
        return "encoder-decoder"
    names = " ".join(config.architectures or ())
    return "causal" if "CausalLM" in names or "LMHeadModel" in names else "encoder"


def _max_length(config: PretrainedConfig) -> int:
    # T5 has no table of positions, but tells on how many it was trained.
    told = getattr(config, "max_position_embeddings", 0) or getattr(config, "n_positions", 0)
    positions = int(told or 2048)
    return positions - 2 if config.model_type in _POSITION_OFFSET else positions


def _pick_precision(
    info: BaseInfo, device: torch.device, wanted: Literal["auto"] | Precision
) -> Precision:
    weights = sum(path.stat().st_size for path in info.directory.glob("*.safetensors")) // 4
    return pick_precision(wanted, device=device, parameters=weights)


def _load_model(
    info: BaseInfo, *, dtype: torch.dtype, attention: Implementation
) -> tuple[nn.Module, Implementation]:
    """The model, frozen, and the attention that it computes with.

    A family without sdpa (MPNet, DeBERTa, Gemma 2, BLOOM) is refused by transformers before it
    reads a weight, with an error that has no type of its own: then eager is asked for, which every
    family has, and what fails again has another reason.
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]
    read = functools.partial(
        _LOADERS[info.architecture].from_pretrained,
        info.directory,
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    with _READING, _telling_what_is_unsupported(info.name):
        try:
            model: nn.Module = read(attn_implementation=attention)
        except ValueError:
            attention = "eager"
            model = read(attn_implementation=attention)
    model.requires_grad_(False)
    return model.eval(), attention


@contextmanager
def _telling_what_is_unsupported(name: str) -> Iterator[None]:
    """Turn what transformers raises for a base that it cannot make into an error in words.

    Args:
        name: Of the base.

    Yields:
        Nothing.

    Raises:
        BaseModelError: It raised (``base_unsupported``).
    """
    try:
        yield
    except (ImportError, KeyError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BaseModelError(
            f"transformers cannot load {name!r}: {reason}; use another base model",
            code="base_unsupported",
        ) from error


def _attention(device: torch.device, precision: Precision) -> Implementation:
    """On CPUs without AMX the fused bf16 attention is 5 to 8 times slower than plain products."""
    return "eager" if device.type == "cpu" and precision == "bf16" else "sdpa"


def _trunk(model: nn.Module, info: BaseInfo) -> nn.Module:
    if info.architecture == "encoder":
        return model
    if info.architecture == "encoder-decoder":
        return TwoStacks(model.get_encoder(), model.get_decoder())  # type: ignore[operator]
    trunk = getattr(model, str(model.base_model_prefix), None)
    if not isinstance(trunk, nn.Module):
        raise BaseModelError(f"{info.name!r} has no trunk to hook", code="base_unsupported")
    return trunk


def _answer_start(model: nn.Module, info: BaseInfo) -> tuple[int, ...] | None:
    """What the decoder is given before an answer; None without a decoder of its own.

    Raises:
        BaseModelError: The base does not tell.
    """
    if info.architecture != "encoder-decoder":
        return None
    config: GenerationConfig = model.generation_config  # type: ignore[assignment]
    start = config.decoder_start_token_id
    if not isinstance(start, int):
        raise BaseModelError(
            f"{info.name!r} names no decoder_start_token_id", code="base_unsupported"
        )
    forced = config.forced_bos_token_id
    return (start,) if forced is None else (start, int(forced))
