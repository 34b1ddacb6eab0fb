"""Text to token ids.

What a user writes stays text: a ``[SEP]`` or ``<|im_end|>`` inside it never becomes a control
token.

Every method may be called from several threads at once.
"""

import hashlib
import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import TemplateError
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from peft_engine.bases.safe_tokenizer import check_ids, hide_control_pieces, within_vocabulary
from peft_engine.errors import BaseModelError, DataError

Cut = Literal["end", "start"]
"""Where a text that is too long loses tokens."""

# Private-use characters stand for a message's content while a chat template is rendered.
_SENTINEL = re.compile("\ue000(\\d+)\ue001")

Message = Mapping[str, Any]


@dataclass(frozen=True)
class EncodedText:
    """One input of an encoder, special tokens included.

    Attributes:
        input_ids: Token ids.
        type_ids: 0 for the first text, 1 for the second.
        cut_tokens: How many tokens did not fit.
    """

    input_ids: list[int]
    type_ids: list[int]
    cut_tokens: int


@dataclass(frozen=True)
class PlacedText:
    """One input of an encoder with the place of each token in the user's own text.

    Attributes:
        input_ids: Token ids, special ones included.
        type_ids: 0 for the first text, 1 for the second.
        offsets: Start and end of each token in its text, in characters (Unicode code points).
        texts: Number of the text that each token comes from, 0 or 1; None for special tokens.
        cut_tokens: How many tokens did not fit.
    """

    input_ids: list[int]
    type_ids: list[int]
    offsets: list[tuple[int, int]]
    texts: list[int | None]
    cut_tokens: int


@dataclass(frozen=True)
class Turn:
    """A stretch of tokens of a conversation.

    Attributes:
        input_ids: Token ids.
        learned: Whether these tokens are the assistant's own, which training learns.
    """

    input_ids: list[int]
    learned: bool


class TextEncoder:
    """Tokenizer of one base with user text kept apart from control tokens.

    Args:
        tokenizer: The fast tokenizer of the base.
        vocabulary: Rows of the base's table of embeddings.
        answer_start: What the decoder of a base with two stacks is given before every answer; None
            where prompt and answer are one row.

    Raises:
        BaseModelError: The tokenizer is not a fast one, or writes tokens that the base has no
            embedding for (code ``base_unsupported``).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        vocabulary: int,
        answer_start: tuple[int, ...] | None = None,
    ) -> None:
        if not tokenizer.is_fast:
            raise BaseModelError(
                "the base has no fast tokenizer (tokenizer.json)", code="base_unsupported"
            )
        self._tokenizer = tokenizer
        source = within_vocabulary(tokenizer.backend_tokenizer, vocabulary)
        self._source = hide_control_pieces(source)
        self._control = _bare(Tokenizer.from_str(source))
        self._text = self._copy_for_text()
        self._truncating: dict[tuple[int, Cut], Tokenizer] = {}
        self._windowing: dict[tuple[int, int], Tokenizer] = {}
        self._lock = threading.Lock()
        self.answer_start = answer_start
        self.chat_template: str | None = getattr(tokenizer, "chat_template", None)
        self.eos_id: int | None = tokenizer.eos_token_id
        self.bos_id: int | None = tokenizer.bos_token_id
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        if self.pad_id >= vocabulary:
            self.pad_id = 0  # nobody looks at padding, but it is looked up
        pair = self._text.encode("", "")  # its special tokens are of both texts
        self.text_types: int = 1 + max(pair.type_ids, default=0)
        """How many token types it writes for a pair; a base need not have as many."""
        check_ids([self.eos_id, self.bos_id, *pair.ids], vocabulary)

    @property
    def template_digest(self) -> str:
        """``sha256:…`` over everything that decides how a record becomes tokens."""
        parts: dict[str, object] = {
            "version": 1,
            "mode": "chat" if self.chat_template else "plain",
            "chat_template": self.chat_template,
            "eos": self.eos_id,
            "bos": self.bos_id,
        }
        if self.answer_start is not None:
            parts |= {"mode": "two-stacks", "chat_template": None}
            parts |= {"answer_start": self.answer_start, "around": self._text.encode("").ids}
        text = json.dumps(parts, sort_keys=True)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    def encode_inputs(
        self, inputs: Sequence[str | tuple[str, str]], *, max_length: int, cut: Cut = "end"
    ) -> list[EncodedText]:
        """Encode texts or pairs for an encoder, with its special tokens.

        Args:
            inputs: A text or a pair for each row.
            max_length: Longest result in tokens; the longer text of a pair is cut first.
            cut: Where a text that is too long loses tokens.

        Returns:
            One encoding for each input, in order.
        """
        encoder = self._truncating_to(max_length, cut)
        return [
            EncodedText(encoding.ids, encoding.type_ids, self._count_cut(given, encoding))
            for given, encoding in zip(inputs, encoder.encode_batch(list(inputs)), strict=True)
        ]

    def place_texts(self, texts: Sequence[str], *, max_length: int) -> list[PlacedText]:
        """Encode texts as ``encode_inputs`` does, and keep where each token stands.

        Args:
            texts: The texts.
            max_length: Longest result in tokens.

        Returns:
            One encoding for each text, in order.
        """
        return [
            _placed(encoding, _overflowing_tokens(encoding))
            for encoding in self._truncating_to(max_length, "end").encode_batch(list(texts))
        ]

    def place_windows(
        self, first: str, second: str, *, max_length: int, overlap_tokens: int
    ) -> list[PlacedText]:
        """Encode a pair in windows over its second text; each repeats the whole first one.

        Args:
            first: A short text; what does not leave at least two tokens more than the overlap to
                the second one is cut and counted in every window.
            second: A text of any length.
            max_length: Longest window in tokens.
            overlap_tokens: Tokens of the second text that two neighbours share.

        Returns:
            At least one window, in the order of the text.
        """
        room = max_length - self.count_input_tokens(("", "")) - overlap_tokens - 2
        encoded = self._text.encode(first, add_special_tokens=False)
        surplus = max(0, len(encoded.ids) - max(room, 0))
        if surplus:
            first = first[: encoded.offsets[room][0]] if room > 0 else ""
        with self._lock:
            key = (max_length, overlap_tokens)
            if key not in self._windowing:
                encoder = self._copy_for_text()
                encoder.enable_truncation(max_length, stride=overlap_tokens, strategy="only_second")
                self._windowing[key] = encoder
            encoder = self._windowing[key]
        encoding = encoder.encode(first, second)
        return [_placed(window, surplus) for window in (encoding, *encoding.overflowing)]

    def count_input_tokens(self, value: str | tuple[str, str]) -> int:
        """Length of an encoder input before anything is cut.

        Args:
            value: A text or a pair.

        Returns:
            Tokens, special ones included.
        """
        encoding = self._text.encode(value) if isinstance(value, str) else self._text.encode(*value)
        return len(encoding.ids)

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of user text, no special token added or recognised.

        Args:
            text: Any text.

        Returns:
            Token ids.
        """
        return self._text.encode(text, add_special_tokens=False).ids

    def encode_conversation(self, messages: Sequence[Message]) -> list[Turn]:
        """Encode a conversation by the base's own chat template.

        Args:
            messages: ``role`` and ``content`` each; the last may be the user's, then the result
                ends where the assistant begins to answer.

        Returns:
            Stretches of tokens in order; those of the assistant are marked ``learned`` up to and
            including the token that ends its turn.

        Raises:
            BaseModelError: The template rewrites earlier turns, so that what is trained would
                not be what is served (code ``base_unsupported``).
            DataError: The template refuses these messages (code ``template_refused``).
        """  # noqa: DOC502  raised below
        if self.chat_template is None:
            return self._encode_without_template(messages)
        turns: list[Turn] = []
        done = ""
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render(messages[:index], prompt=True)
            whole = self._render(messages[: index + 1], prompt=False)
            _check_prefix(done, prompt)
            _check_prefix(prompt, whole)
            turns.append(Turn(self._encode_rendered(prompt[len(done) :], messages), learned=False))
            turns += self._answer_turns(whole[len(prompt) :], messages)
            done = whole
        if messages[-1]["role"] != "assistant":
            prompt = self._render(messages, prompt=True)
            turns.append(Turn(self._encode_rendered(prompt[len(done) :], messages), learned=False))
        return turns

    def encode_prompt(self, messages: Sequence[Message], *, max_length: int) -> EncodedText:
        """What the encoder of a base with two stacks reads before an answer.

        A lone message of the user is its content, as such bases were trained on; a conversation is
        a line ``role: content`` for each message, whatever chat template there may be. A lone text
        that is too long loses its end, where documents matter least, a conversation its start.

        Args:
            messages: ``role`` and ``content`` each, the last before the answer.
            max_length: Longest result in tokens.

        Returns:
            The encoding, special tokens included.
        """
        if len(messages) == 1 and messages[0]["role"] == "user":
            return self.encode_inputs([messages[0]["content"]], max_length=max_length)[0]
        lines = "\n".join(f"{message['role']}: {message['content']}" for message in messages)
        return self.encode_inputs([lines], max_length=max_length, cut="start")[0]

    def encode_answer(self, text: str) -> list[Turn]:
        """What the decoder of a base with two stacks is to write.

        Args:
            text: The answer.

        Returns:
            ``answer_start``, not learned; then what the tokenizer puts before a text (such as
            BART's ``<s>``, unless the base forces it) and the text up to and including the token
            that ends it, learned.
        """
        start = self.answer_start or ()
        around = self._text.encode("").ids
        forced = len(start) > 1
        opening = around[: around.index(self.eos_id)] if self.eos_id in around else []
        end = [] if self.eos_id is None else [self.eos_id]
        own = [*([] if forced else opening), *self.encode_plain(text), *end]
        return [Turn(list(start), learned=False), Turn(own, learned=True)]

    def encode_replies(
        self, messages: Sequence[Message], replies: Sequence[str]
    ) -> list[list[int]]:
        """Several answers to one conversation, as ``encode_conversation`` encodes its last turn.

        Args:
            messages: ``role`` and ``content`` each, the last before the answer.
            replies: What the assistant might say; their number costs no rendering.

        Returns:
            For each the tokens that are learned, up to and including the one that ends the turn.

        Raises:
            BaseModelError: The template rewrites earlier turns (code ``base_unsupported``).
        """  # noqa: DOC502  raised below
        if self.chat_template is None:
            end = [] if self.eos_id is None else [self.eos_id]
            return [[*self.encode_plain(reply), *end] for reply in replies]
        prompt = self._render(messages, prompt=True)
        # whatever is said, the template is given a mark in its place
        whole = self._render([*messages, _said("")], prompt=False)
        _check_prefix(prompt, whole)
        rest = whole[len(prompt) :]
        return [
            self._answer_turns(rest, [*messages, _said(reply)])[0].input_ids for reply in replies
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated tokens, control tokens left out.

        Args:
            ids: Token ids.

        Returns:
            The text.
        """
        return self._control.decode(list(ids), skip_special_tokens=True)

    def token_text(self, token: int) -> str:
        """What one token looks like by itself, control tokens by their names.

        Args:
            token: Its id.

        Returns:
            The text; half a character is shown as U+FFFD.
        """
        return self._control.decode([token], skip_special_tokens=False)

    def _answer_turns(self, rendered: str, messages: Sequence[Message]) -> list[Turn]:
        ids = self._encode_rendered(rendered, messages)
        if self.eos_id is not None and self.eos_id in ids:
            end = ids.index(self.eos_id) + 1
        else:
            end = len(ids)
            ids = [*ids, self.eos_id] if self.eos_id is not None else ids
            end = len(ids)
        turns = [Turn(ids[:end], learned=True)]
        return [*turns, Turn(ids[end:], learned=False)] if ids[end:] else turns

    def _encode_without_template(self, messages: Sequence[Message]) -> list[Turn]:
        """A base without a chat template reads the contents one after another."""
        turns = [Turn([self.bos_id], learned=False)] if self.bos_id is not None else []
        for message in messages:
            ids = self.encode_plain(message["content"])
            learned = message["role"] == "assistant"
            if learned and self.eos_id is not None:
                ids = [*ids, self.eos_id]
            turns.append(Turn(ids, learned=learned))
        return turns

    def _render(self, messages: Sequence[Message], *, prompt: bool) -> str:
        """The conversation with a mark in the place of each content.

        Raises:
            DataError: The template refuses it.
        """
        hidden = [
            {**message, "content": f"\ue000{index}\ue001"} for index, message in enumerate(messages)
        ]
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    hidden, tokenize=False, add_generation_prompt=prompt
                )
            )
        except TemplateError as error:
            raise DataError(
                f"the chat template of this base refuses these messages: {error}",
                code="template_refused",
                param="dataset_id",
            ) from error

    def _encode_rendered(self, rendered: str, messages: Sequence[Message]) -> list[int]:
        ids: list[int] = []
        for number, piece in enumerate(_SENTINEL.split(rendered)):
            if number % 2:
                ids += self.encode_plain(messages[int(piece)]["content"])
            elif piece:
                ids += self._control.encode(piece, add_special_tokens=False).ids
        return ids

    def _copy_for_text(self) -> Tokenizer:
        copy = _bare(Tokenizer.from_str(self._source))
        copy.encode_special_tokens = True
        return copy

    def _count_cut(self, given: str | tuple[str, str], encoding: Encoding) -> int:
        """Tokens of an input that its encoding lost."""
        if isinstance(given, str) or not encoding.overflowing:
            return _overflowing_tokens(encoding)
        # what overflows of a pair repeats the other text
        return self.count_input_tokens(given) - len(encoding.ids)

    def _truncating_to(self, max_length: int, cut: Cut) -> Tokenizer:
        with self._lock:
            key = (max_length, cut)
            if key not in self._truncating:
                encoder = self._copy_for_text()
                side = "right" if cut == "end" else "left"
                encoder.enable_truncation(max_length, strategy="longest_first", direction=side)
                self._truncating[key] = encoder
            return self._truncating[key]


def _said(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _check_prefix(before: str, rendered: str) -> None:
    if not rendered.startswith(before):
        raise BaseModelError(
            "the chat template of this base rewrites earlier turns", code="base_unsupported"
        )


def _bare(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _overflowing_tokens(encoding: Encoding) -> int:
    """Tokens of a text that did not fit."""
    return sum(text is not None for over in encoding.overflowing for text in over.sequence_ids)


def _placed(encoding: Encoding, cut_tokens: int) -> PlacedText:
    return PlacedText(
        encoding.ids, encoding.type_ids, encoding.offsets, encoding.sequence_ids, cut_tokens
    )
