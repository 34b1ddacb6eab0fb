"""Options of one row of a prediction, read strictly: what is not known is refused, not ignored."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from peft_engine.errors import RowError
from peft_engine.generation import Sampling

MAX_NEW_TOKENS = 4096
MAX_CONTINUATIONS = 16
MAX_LOGPROBS = 20
"""As the OpenAI API has it."""
_DEFAULT_NEW_TOKENS = 128
_MAX_STOPS = 16
_SEEDS = 2**63

_KNOWN = frozenset(
    {
        "max_new_tokens",
        "temperature",
        "top_p",
        "top_k",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "stop",
        "seed",
        "n",
        "logprobs",
    }
)


def read_samplings(options: Mapping[str, Any], *, room: int) -> tuple[Sampling, ...]:
    """How the continuations of a row choose.

    Args:
        options: As they were asked.
        room: Tokens of the context that the prompt leaves.

    Returns:
        One sampling for each of ``n`` continuations; the seeds count up from ``seed``.

    Raises:
        RowError: Codes ``bad_option``, ``too_long``.
    """
    refuse_options(options, _KNOWN)
    asked = _number(options, "max_new_tokens", None, low=1, high=MAX_NEW_TOKENS, whole=True)
    if asked is not None and asked > room:
        raise RowError(
            f"max_new_tokens {asked} does not fit: {room} tokens of the context are left",
            code="too_long",
            param="options.max_new_tokens",
        )
    count = int(_number(options, "n", 1, low=1, high=MAX_CONTINUATIONS, whole=True) or 1)
    seed = int(_number(options, "seed", 0, low=0, high=_SEEDS - 1, whole=True) or 0)
    logprobs = _number(options, "logprobs", None, low=0, high=MAX_LOGPROBS, whole=True)
    temperature = _real(options, "temperature", 0.0, low=0, high=10)
    if count > 1 and temperature == 0:
        raise RowError(
            f"n {count} needs a temperature above 0: without one all continuations are equal",
            code="bad_option",
            param="options.n",
        )
    return tuple(
        Sampling(
            max_new_tokens=min(_DEFAULT_NEW_TOKENS, room) if asked is None else int(asked),
            temperature=temperature,
            top_p=_real(options, "top_p", 1.0, low=1e-6, high=1),
            top_k=int(_number(options, "top_k", 0, low=0, high=1_000_000, whole=True) or 0),
            repetition_penalty=_real(options, "repetition_penalty", 1.0, low=0.1, high=10),
            presence_penalty=_real(options, "presence_penalty", 0.0, low=-2, high=2),
            frequency_penalty=_real(options, "frequency_penalty", 0.0, low=-2, high=2),
            stop=_stops(options),
            seed=(seed + place) % _SEEDS,
            logprobs=None if logprobs is None else int(logprobs),
        )
        for place in range(count)
    )


def refuse_options(options: Mapping[str, Any], known: frozenset[str]) -> None:
    """Refuse an option that would do nothing.

    Args:
        options: As they were asked.
        known: Names that mean something here.

    Raises:
        RowError: There is another one (``bad_option``).
    """
    unknown = sorted(set(options) - known)
    if unknown:
        offered = ", ".join(sorted(known)) or "none"
        raise RowError(
            f"option {unknown[0]!r} is not known here; known: {offered}",
            code="bad_option",
            param=f"options.{unknown[0]}",
        )


def _stops(options: Mapping[str, Any]) -> tuple[str, ...]:
    stop = options.get("stop")
    stops: Any = [stop] if isinstance(stop, str) else [] if stop is None else stop
    is_list = isinstance(stops, Sequence) and len(stops) <= _MAX_STOPS
    if not is_list or not all(isinstance(text, str) and text for text in stops):
        raise RowError(
            f"stop takes a text or a list of up to {_MAX_STOPS}",
            code="bad_option",
            param="options.stop",
        )
    return tuple(stops)


def _real(
    options: Mapping[str, Any], name: str, default: float, *, low: float, high: float
) -> float:
    found = _number(options, name, default, low=low, high=high)
    return default if found is None else float(found)


def _number(
    options: Mapping[str, Any],
    name: str,
    default: float | None,
    *,
    low: float,
    high: float,
    whole: bool = False,
) -> float | None:
    value = options.get(name)
    if value is None:
        return default
    kinds = (int,) if whole else (int, float)
    number = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise RowError(
            f"{name} must be {kind} from {low:g} to {high:g}, not {value!r:.40}",
            code="bad_option",
            param=f"options.{name}",
        )
    return float(value) if not whole else int(value)
