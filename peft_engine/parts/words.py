"""Words of a text and the tokens that speak for them. Knows no tokenizer and no task.

Offsets are characters (Unicode code points), end exclusive, in the text as it was given.
"""

import functools
import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

Span = tuple[int, int]


@dataclass(frozen=True)
class Words:
    """Where the words of a row stand.

    Attributes:
        text: The user's text, or the tokens with blanks between.
        spans: Start and end of each word in the text.
        seen: Number of each word that has a token.
        places: The token that speaks for each of those.
        given: Whether the user gave the words.
    """

    text: str
    spans: tuple[Span, ...]
    seen: tuple[int, ...]
    places: tuple[int, ...]
    given: bool


_ASCII_WORD = re.compile(r"\w+|[^\w\s]")
_ZERO_WIDTH_JOINER = "\u200d"
# Scripts whose words are not parted by blanks, or, as in Korean, take particles without one.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff"  # Thai to Khmer
    "\u1100-\u115f\uac00-\ud7af"  # Hangul
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f\U0001b000-\U0001b16f"  # Kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"  # Han
)
# Vowels and finals of Hangul syllables that are written in parts.
_HANGUL_PART = re.compile("[\u1160-\u11ff]")
_SKIN_TONE = re.compile("[\U0001f3fb-\U0001f3ff]")


def find_words(text: str) -> list[Span]:
    """Words and single signs of a text; what is between them is blank.

    Letters, digits and underscores in a row are a word; of Han, Kana, Hangul, Thai, Lao, Khmer and
    Myanmar each letter is one, since names begin and end between any two. Combining marks and
    invisible format characters stay with what stands before them, and signs that a zero-width
    joiner ties together (many emoji) are one word.

    Args:
        text: Any text.

    Returns:
        Spans in order; every visible character stands in exactly one.
    """
    if text.isascii():
        return [found.span() for found in _ASCII_WORD.finditer(text)]
    words: list[Span] = []
    was = ""  # kind of what stands before, marks left out; see _kind
    for place, character in enumerate(text):
        kind = _kind(character)
        goes_on = kind in ("m", "j") or (kind == "w" and was == "w") or was == "j"
        if kind and goes_on and was:
            words[-1] = (words[-1][0], place + 1)
            was = was if kind == "m" else kind
        elif kind:
            words.append((place, place + 1))
            was = "s" if kind in ("m", "j") else kind
        else:
            was = ""
    return words


def is_mark(character: str) -> bool:
    """Whether it belongs to what stands before it: a combining mark or an invisible character.

    Args:
        character: One character.

    Returns:
        True for the categories M and Cf.
    """
    return unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf")


def _kind(character: str) -> str:
    """``w`` of a word, ``s`` sign of its own, ``m`` mark, ``j`` joiner; none for a blank."""
    if character == _ZERO_WIDTH_JOINER:
        return "j"
    if is_mark(character) or _SKIN_TONE.match(character) or _HANGUL_PART.match(character):
        return "m"
    category = unicodedata.category(character)
    if category[0] in "LN" or category == "Pc":
        return "s" if _UNSPACED.match(character) and category != "Nd" else "w"
    return "" if category[0] == "Z" or category == "Cc" else "s"


def join_tokens(tokens: Sequence[str]) -> tuple[str, list[Span]]:
    """Tokens as one text with blanks between.

    Args:
        tokens: The tokens.

    Returns:
        The text, and where each token stands in it.
    """
    spans: list[Span] = []
    end = -1
    for token in tokens:
        start = end + 1
        end = start + len(token)
        spans.append((start, end))
    return " ".join(tokens), spans


SPELLING_MARKS = 8
"""How many things ``spell_word`` says of a word."""


def spell_word(word: str) -> tuple[bool, ...]:
    """How a word is written, which tokenizers that read everything in lower case do not see.

    Args:
        word: The word.

    Returns:
        All letters small; only the first one large; several letters, all large; a single large
        letter; a large letter further inside; a digit in it; nothing but digits; neither letter
        nor digit.
    """
    large = word.isupper()
    several = sum(character.isalpha() for character in word) > 1
    return (
        word.islower(),
        word[:1].isupper() and not any(c.isupper() for c in word[1:]) and several,
        large and several,
        large and not several,
        any(c.isupper() for c in word[1:]) and not large,
        any(c.isdigit() for c in word),
        word.isdigit(),
        not any(c.isalnum() for c in word),
    )


_KEPT_NUMBERS = 65_536


@functools.lru_cache(maxsize=_KEPT_NUMBERS)
def number_word(word: str) -> int:
    """Which word it is, whatever its case: a number that is the same in every process.

    Args:
        word: The word.

    Returns:
        Its BLAKE2b digest of 64 bits.
    """
    text = word.casefold().encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def align_spans(
    spans: Sequence[Span], offsets: Sequence[Span], usable: Sequence[bool]
) -> list[tuple[int, int] | None]:
    """First and last token of each span of a text.

    Args:
        spans: Spans in the order of their starts that do not overlap.
        offsets: Where each token stands; nothing in a zero-width one counts, unless the span has
            no other.
        usable: False for tokens that do not come from the text, such as special ones.

    Returns:
        First and last token (inclusive) that share a character with the span; None where no token
        does, since it was cut off or the tokenizer makes nothing of it.
    """
    tokens = [place for place, own in enumerate(usable) if own]
    found: list[tuple[int, int] | None] = []
    begin = 0
    for start, end in spans:
        while begin < len(tokens) and offsets[tokens[begin]][1] < start:
            begin += 1
        own, narrow = [], []
        for place in tokens[begin:]:
            low, high = offsets[place]
            if low >= end:
                break
            if low < high and high > start:
                own.append(place)
            elif low == high and low >= start:
                narrow.append(place)
        own = own or narrow
        found.append((own[0], own[-1]) if own else None)
    return found
