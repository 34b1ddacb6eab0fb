"""How deep JSON that comes from elsewhere may stand in itself, for whoever keeps or copies it."""

from typing import Any

MAX_DEPTH = 64
"""Lists and objects in one another: ten times what anything of ours has, and no parser's limit.
Python reads and writes some 980 less what is on its stack, pydantic writes 255, and what was read
once is read, copied and written again further down the stack."""


def is_deeper(value: Any, most: int = MAX_DEPTH) -> bool:
    """Tell whether JSON is nested too deeply; not recursive, so that no depth can break it.

    Args:
        value: JSON, of any shape. Text, numbers and null are 0 deep, `[]` and `{"a": 1}` 1.
        most: How deep it may be.

    Returns:
        Whether it is deeper.
    """
    layer = [value]
    for _ in range(most + 1):
        layer = [own for own in layer if isinstance(own, dict | list | tuple)]
        if not layer:
            return False
        entries = [own.values() if isinstance(own, dict) else own for own in layer]
        layer = [item for own in entries for item in own]
    return True


def refuse_deep(value: Any) -> Any:
    """Refuse JSON that is deeper than ``MAX_DEPTH``, as a validator.

    Args:
        value: JSON, of any shape.

    Returns:
        The same.

    Raises:
        ValueError: It is.
    """
    if is_deeper(value):
        raise ValueError(f"has more than {MAX_DEPTH} lists and objects in one another")
    return value
