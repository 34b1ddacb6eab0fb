"""Sets of modules as the shortest endings of their names that mean exactly these modules."""

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def name_endings(chosen: Collection[str], all_paths: Sequence[str]) -> tuple[str, ...]:
    """Endings that match the chosen modules and no other.

    Args:
        chosen: Paths, all among ``all_paths``.
        all_paths: Every module that endings are matched against.

    Returns:
        Sorted endings; a whole path where nothing shorter will do.
    """
    kinds = {path: path in chosen for path in all_paths}
    return tuple(sorted(ending for ending, is_in in _split(kinds).items() if is_in))


def group_by_ending(values: Mapping[str, T], *, default: T) -> dict[str, T]:
    """Values that differ from the default, by endings of the modules that have them.

    Args:
        values: A value for each path.
        default: What modules have that no ending matches.

    Returns:
        Value by ending, such that the longest matching ending of each path gives its value.
    """
    return {ending: value for ending, value in _split(values).items() if value != default}


def _split(values: Mapping[str, T]) -> dict[str, T]:
    """Value by the shortest ending of which all paths agree."""
    found: dict[str, T] = {}
    for path, value in values.items():
        pieces = path.split(".")
        for length in range(1, len(pieces) + 1):
            ending = ".".join(pieces[-length:])
            alike = (
                other == value
                for name, other in values.items()
                if name == ending or name.endswith(f".{ending}")
            )
            if ending in found or all(alike):
                found[ending] = value
                break
    return found
