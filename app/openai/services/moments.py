"""Moments as ``/v1`` tells them."""

from datetime import datetime
from typing import overload


@overload
def unix_seconds(moment: datetime) -> int: ...
@overload
def unix_seconds(moment: datetime | None) -> int | None: ...
def unix_seconds(moment: datetime | None) -> int | None:
    """Tell a moment in whole seconds, as OpenAI does.

    Args:
        moment: None for what has not happened.

    Returns:
        Unix seconds; None as it came.
    """
    return None if moment is None else int(moment.timestamp())
