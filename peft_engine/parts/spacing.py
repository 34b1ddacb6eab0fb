"""Evenly spaced rows, where all would be too many: a file may be sorted. Knows no records."""


def evenly_spaced(rows: int, count: int) -> list[int]:
    """Numbers of evenly spaced rows, from the first one to the last stretch.

    Args:
        rows: How many there are.
        count: How many to take.

    Returns:
        At most so many numbers, ascending and none twice; all where there are no more.
    """
    taken = min(rows, count)
    return [place * rows // taken for place in range(taken)]
