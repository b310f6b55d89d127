"""Filling rows with samples."""

import bisect
from collections.abc import Sequence


def pack_best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: each sample goes into the fullest row that still has room for it.

    Args:
        lengths: length of each sample, in tokens; none above ``capacity``.
        capacity: length of a row, in tokens.

    Returns:
        Rows of sample numbers (positions in ``lengths``).

    Raises:
        ValueError: if a sample is longer than a row.

    Example:
        >>> pack_best_fit([3, 5, 4, 2], capacity=7)
        [[1, 3], [2, 0]]
    """
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room left, row), sorted
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[i]
        if length > capacity:
            raise ValueError(f"a sample of {length} tokens does not fit a row of {capacity}")
        at = bisect.bisect_left(open_rows, (length, -1))
        if at < len(open_rows):
            room, row = open_rows.pop(at)
            rows[row].append(i)
        else:
            room, row = capacity, len(rows)
            rows.append([i])
        if room > length:
            bisect.insort(open_rows, (room - length, row))
    return rows
