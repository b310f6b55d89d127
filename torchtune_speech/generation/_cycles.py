"""Finding a repetition loop while it is decoded."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, slots=True)
class Cycle:
    """A loop at the end of a sequence of tokens.

    Attributes:
        start: place of the first token of the first cycle.
        unit: the tokens of a cycle.
    """

    start: int
    unit: tuple[int, ...]


class CycleDetector:
    """Tells when a growing sequence of tokens has begun to repeat itself.

    For each period p it keeps how many of the last tokens equal the one p places before; a step
    costs one comparison with the last ``max_period`` tokens.

    Args:
        min_repeats: fewest whole cycles that make a loop.
        min_length: fewest tokens in the loop, so that "no, no, no" is none.
        max_period: longest cycle that is looked for, in tokens.

    Example:
        >>> detector = CycleDetector(min_repeats=3, min_length=6)
        >>> [detector.add(token) for token in (7, 1, 2, 1, 2, 1, 2)][-1]
        Cycle(start=1, unit=(1, 2))
    """

    def __init__(self, min_repeats: int = 4, min_length: int = 24, max_period: int = 256) -> None:
        periods = np.arange(1, max_period + 1)
        self._needed = np.maximum(min_repeats * periods, min_length) - periods
        self._equal = np.zeros(max_period, dtype=np.int64)
        self._tokens = np.empty(256, dtype=np.int64)
        self._length = 0

    def add(self, token: int) -> Cycle | None:
        """Take the next token.

        Args:
            token: its id.

        Returns:
            The loop with the shortest cycle in which the sequence now ends, or None.
        """
        if self._length == len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.empty_like(self._tokens)])
        past = self._tokens[max(self._length - len(self._equal), 0) : self._length][::-1]
        equal = self._equal[: len(past)]
        equal[:] = np.where(past == token, equal + 1, 0)
        self._tokens[self._length] = token
        self._length += 1
        found = np.flatnonzero(self._equal >= self._needed)
        if not len(found):
            return None
        period = int(found[0]) + 1
        start = self._length - int(self._equal[period - 1]) - period
        return Cycle(start, tuple(self._tokens[start : start + period].tolist()))

    def rewind(self, length: int) -> None:
        """Forget the last tokens.

        Args:
            length: how many tokens stay.
        """
        tokens = self._tokens[:length].tolist()
        self._length = 0
        self._equal[:] = 0
        for token in tokens:
            self.add(token)

    def copy(self) -> "CycleDetector":
        """A detector that has seen the same."""
        other = CycleDetector.__new__(CycleDetector)
        other._needed, other._length = self._needed, self._length
        other._equal, other._tokens = self._equal.copy(), self._tokens.copy()
        return other
