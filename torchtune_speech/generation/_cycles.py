"""Finding a repetition loop while it is decoded."""

import copy
import dataclasses
from collections.abc import Collection

import numpy as np


@dataclasses.dataclass(frozen=True, slots=True)
class Cycle:
    """A loop at the end of a sequence of tokens.

    Attributes:
        start: place of the first token of the first cycle.
        unit: the tokens of the first cycle.
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
        other = copy.copy(self)
        other._equal, other._tokens = self._equal.copy(), self._tokens.copy()
        return other


# In place of any number, where loops that count are looked for.
_NUMBER = -1
# Fewest other tokens in the cycle of a counting loop: "1, 2, 3, 4" is none.
_COUNTING_WORDS = 4


class LoopDetector:
    """Finds loops of the very same tokens, and loops that count.

    A counting loop says the same words with another number each time ("98. The Book, 99. The
    Book"). It needs more repeats, and more than a comma between the numbers.

    Args:
        number_ids: tokens that are numbers; without any, only exact loops are found.

    Example:
        >>> detector = LoopDetector(number_ids=range(10, 20))
        >>> tokens = [t for n in range(10, 18) for t in (1, 2, 3, 4, 5, 6, n)]
        >>> next(cycle for t in tokens if (cycle := detector.add(t)))
        Cycle(start=0, unit=(1, 2, 3, 4, 5, 6, 10))
    """

    def __init__(self, number_ids: Collection[int] = ()) -> None:
        self._numbers = frozenset(number_ids)
        self._exact = CycleDetector()
        self._counting = CycleDetector(min_repeats=6, min_length=48) if number_ids else None
        self._tokens: list[int] = []

    def add(self, token: int) -> Cycle | None:
        """Take the next token.

        Args:
            token: its id.

        Returns:
            The loop in which the sequence now ends, or None. The first cycle of a counting loop
            begins with something else than a number.
        """
        self._tokens.append(token)
        exact = self._exact.add(token)
        counting = self._counting and self._counting.add(self._fold(token))
        if exact is not None or counting is None:
            return exact
        if sum(t != _NUMBER for t in counting.unit) < _COUNTING_WORDS:
            return None
        first = next(i for i, t in enumerate(counting.unit) if t != _NUMBER)
        start = counting.start + first
        return Cycle(start, tuple(self._tokens[start : start + len(counting.unit)]))

    def rewind(self, length: int) -> None:
        """Forget the last tokens.

        Args:
            length: how many tokens stay.
        """
        del self._tokens[length:]
        self._exact.rewind(length)
        if self._counting:
            self._counting.rewind(length)

    def ends_with(self, unit: tuple[int, ...]) -> bool:
        """Whether the sequence ends with a cycle, numbers aside.

        Args:
            unit: the tokens of a cycle.
        """
        tail = self._tokens[-len(unit) :]
        return [*map(self._fold, tail)] == [*map(self._fold, unit)]

    def copy(self) -> "LoopDetector":
        """A detector that has seen the same."""
        other = copy.copy(self)
        other._tokens = self._tokens.copy()
        other._exact = self._exact.copy()
        other._counting = self._counting and self._counting.copy()
        return other

    def _fold(self, token: int) -> int:
        return _NUMBER if token in self._numbers else token
