"""A few places spread evenly over many."""

import numpy as np


def spread(count: int, total: int) -> list[int]:
    """Places spread evenly over a sequence, from its first to its last.

    Args:
        count: how many; all of them where there are fewer.
        total: length of the sequence.

    Returns:
        The places, ascending, each once.

    Example:
        >>> spread(3, 10)
        [0, 4, 9]
    """
    return np.linspace(0, total - 1, min(count, total)).astype(int).tolist()
