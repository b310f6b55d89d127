"""Filling rows with samples."""

import bisect
from collections.abc import Sequence

import numpy as np


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


def packed_order(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """:func:`pack_best_fit` for very many samples: as many rows, one after the other.

    Samples of one length are placed together, in a whole group of equally full rows at a time: best
    fit would fill each of these rows with that length before it turns to an emptier one. The cost
    is that of two sorts and of the groups, which hardly grow in number with the samples; below a
    few thousand samples :func:`pack_best_fit` is faster.

    Args:
        lengths: length of each sample, in tokens, ``[n]``; from 1 to ``capacity``.
        capacity: length of a row, in tokens.

    Returns:
        Sample numbers in the order of their rows, ``[n]``, and where each row ends, ``[rows]``.

    Raises:
        ValueError: if a sample is longer than a row, or has no token.
    """
    sizes, counts = np.unique(lengths, return_counts=True)
    if len(sizes) and sizes[-1] > capacity:
        raise ValueError(f"a sample of {sizes[-1]} tokens does not fit a row of {capacity}")
    if len(sizes) and sizes[0] < 1:
        raise ValueError(f"a sample of {sizes[0]} tokens cannot be packed")
    row_of: list[int] = []  # of the samples from the longest to the shortest
    open_rows: dict[int, list[int]] = {}  # room left -> rows
    rooms: list[int] = []  # the keys of open_rows, sorted
    opened = 0
    for size, left in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while left:
            at = bisect.bisect_left(rooms, size)
            room = rooms[at] if at < len(rooms) else capacity
            each = room // size
            needed = -(-left // each)
            if at < len(rooms):
                rows = _take(open_rows, rooms, room, needed)
            else:
                rows = list(range(opened, opened + needed))
                opened += needed
            placed = min(left, each * len(rows))
            row_of += [row for row in rows for _ in range(each)][:placed]
            missing = each * len(rows) - placed  # in the last row, if the samples ran out
            if missing:
                _put(open_rows, rooms, room - (each - missing) * size, rows[-1:])
                rows = rows[:-1]
            _put(open_rows, rooms, room - each * size, rows)
            left -= placed
    longest_first = np.argsort(-lengths, kind="stable")
    rows_of = np.array(row_of, dtype=np.int64)
    by_row = longest_first[np.argsort(rows_of, kind="stable")]
    return by_row, np.cumsum(np.bincount(rows_of, minlength=opened))


def _take(open_rows: dict[int, list[int]], rooms: list[int], room: int, needed: int) -> list[int]:
    """Up to ``needed`` of the rows with this room; they are no longer open."""
    rows = open_rows[room][-needed:]
    del open_rows[room][-needed:]
    if not open_rows[room]:
        del open_rows[room]
        rooms.remove(room)
    return rows


def _put(open_rows: dict[int, list[int]], rooms: list[int], room: int, rows: list[int]) -> None:
    """Rows are open again, with this room; full ones are not."""
    if not room or not rows:
        return
    if room not in open_rows:
        open_rows[room] = []
        bisect.insort(rooms, room)
    open_rows[room] += rows
