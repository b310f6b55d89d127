"""Finding a repetition loop while it is decoded."""

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np
import regex
from numpy.typing import NDArray

# A word begins behind a blank; scripts without blanks have a word a character, as in the scores.
_WORD_STARTS = regex.compile(r"\s[\p{L}\p{N}]|[\p{Han}\p{Hiragana}\p{Katakana}]")

# In place of any number, where loops that count are looked for.
_NUMBER = -1
# What the cycle of a counting loop has besides numbers, at least ("1, 2, 3, 4" is none): words, or
# tokens, since an address on the web is a single word.
_COUNTING_WORDS, _COUNTING_TOKENS = 4, 12
_NEVER = 2**60


@dataclasses.dataclass(frozen=True, slots=True)
class Cycle:
    """A loop at the end of a sequence of tokens.

    Attributes:
        start: place of the first token of the first cycle.
        unit: the tokens of the first cycle.
    """

    start: int
    unit: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class TokenKinds:
    """What loops need to know of tokens.

    Args:
        words: words that begin in each token, ``[vocab]``: "the cat" is two, "ing" none, and a
            Chinese character one.
        is_sign: whether each token has neither letter nor digit, ``[vocab]``.
        is_number: whether each token is a number, ``[vocab]``.
    """

    words: NDArray[np.int64]
    is_sign: NDArray[np.bool_]
    is_number: NDArray[np.bool_]

    @classmethod
    def from_texts(cls, texts: Sequence[str]) -> "TokenKinds":
        """The kinds of all tokens.

        Args:
            texts: text of each token; "" for special tokens.

        Returns:
            Their kinds.

        Example:
            >>> TokenKinds.from_texts([" cat", "ing", ",", "在房", " 12"]).words.tolist()
            [1, 0, 0, 2, 1]
        """
        words = [len(_WORD_STARTS.findall(text)) for text in texts]
        signs = [not any(character.isalnum() for character in text) for text in texts]
        numbers = [text.strip().isdigit() for text in texts]
        return cls(np.array(words), np.array(signs), np.array(numbers))


class CycleDetector:
    """Tells when a growing sequence has begun to repeat itself.

    For each period p it keeps how many of the last items equal the one p places before; a step
    costs one comparison with the last ``max_period`` items.

    Args:
        min_repeats: fewest whole cycles that make a loop.
        min_words: fewest words in the loop, so that "no, no, no" is none.
        min_length: items that will do whatever their words: dots make a loop, too.
        max_period: longest cycle that is looked for, in items.

    Example:
        >>> detector = CycleDetector(min_repeats=3, min_words=6)
        >>> [detector.add(item) for item in (7, 1, 2, 1, 2, 1, 2)][-1]
        (1, 2)
    """

    def __init__(
        self,
        min_repeats: int = 3,
        min_words: int = 10,
        min_length: int = 24,
        max_period: int = 256,
    ) -> None:
        self._periods = np.arange(1, max_period + 1)
        self._min_repeats, self._min_words, self._min_length = min_repeats, min_words, min_length
        self._equal = np.zeros(max_period, dtype=np.int64)
        self._items = np.empty(256, dtype=np.int64)
        self._words = np.zeros(257, dtype=np.int64)  # before each item, added up
        self._length = 0

    def add(self, item: int, words: int = 1) -> tuple[int, int] | None:
        """Take the next item.

        Args:
            item: a number for it.
            words: words that begin in it.

        Returns:
            Start and period of the loop with the shortest cycle in which the sequence now ends, or
            None.
        """
        if self._length == len(self._items):
            self._items = np.concatenate([self._items, np.empty_like(self._items)])
            self._words = np.concatenate([self._words, np.zeros_like(self._items)])
        past = self._items[max(self._length - len(self._equal), 0) : self._length][::-1]
        equal = self._equal[: len(past)]
        equal[:] = np.where(past == item, equal + 1, 0)
        self._items[self._length] = item
        self._length += 1
        self._words[self._length] = self._words[self._length - 1] + words
        lengths = self._equal + self._periods
        starts = self._length - lengths
        long_enough = (lengths >= self._min_length) | (
            self._words[self._length] - self._words[np.maximum(starts, 0)] >= self._min_words
        )
        repeats = (self._equal > 0) & (lengths >= self._min_repeats * self._periods)
        found = np.flatnonzero(repeats & long_enough)
        if not len(found):
            return None
        return int(starts[found[0]]), int(found[0]) + 1

    def rewind(self, length: int) -> None:
        """Forget the last items.

        Args:
            length: how many items stay.
        """
        items, words = self._items[:length].tolist(), np.diff(self._words[: length + 1]).tolist()
        self._length = 0
        self._equal[:] = 0
        for item, count in zip(items, words, strict=True):
            self.add(item, count)

    def copy(self) -> "CycleDetector":
        """A detector that has seen the same."""
        other = copy.copy(self)
        other._equal, other._items = self._equal.copy(), self._items.copy()
        other._words = self._words.copy()
        return other


class LoopDetector:
    """Finds loops of words, loops of words that count, and loops of anything.

    It has the same measure as :func:`~torchtune_speech.evaluation.repetition_loop`: three cycles of
    ten words in all, whatever signs stand between them. A counting loop says the same words with
    another number each time ("98. The Book, 99. The Book"); it needs six cycles, and more than
    numbers. Three cycles of 24 tokens are a loop even without a word.

    Args:
        kinds: of the tokens. Default: each is a word, and none a number.

    Example:
        >>> detector = LoopDetector()
        >>> [detector.add(token) for token in [7] + [1, 2] * 5][-1]
        Cycle(start=1, unit=(1, 2))
    """

    def __init__(self, kinds: TokenKinds | None = None) -> None:
        self._kinds = kinds
        self._all = CycleDetector(min_words=_NEVER)
        self._words = CycleDetector(min_length=_NEVER)
        self._counting = CycleDetector(min_repeats=6, min_words=24, min_length=96)
        self._tokens: list[int] = []
        self._places: list[int] = []  # of the tokens that are no signs

    def add(self, token: int) -> Cycle | None:
        """Take the next token.

        Args:
            token: its id.

        Returns:
            The loop in which the sequence now ends, or None. The first cycle of a counting loop
            begins with something else than a number.
        """
        self._tokens.append(token)
        found = self._all.add(token)
        if found is not None:
            start, period = found
            return Cycle(start, tuple(self._tokens[start : start + period]))
        if self._is_sign(token):
            return None
        self._places.append(len(self._tokens) - 1)
        words = 1 if self._kinds is None else int(self._kinds.words[token])
        found = self._words.add(token, words)
        counting = self._kinds and self._counting.add(self._fold(token), words)
        if found is None and counting is not None:
            found = self._as_loop(*counting)
        if found is None:
            return None
        start, period = found
        # The signs behind its last word belong to a cycle.
        unit = self._tokens[self._places[start] : self._places[start + period]]
        return Cycle(self._places[start], tuple(unit))

    def _as_loop(self, start: int, period: int) -> tuple[int, int] | None:
        """A counting cycle that begins with a word, if it has enough besides numbers."""
        unit = [self._tokens[place] for place in self._places[start : start + period]]
        others = [n for n, token in enumerate(unit) if self._fold(token) != _NUMBER]
        words = sum(int(self._kinds.words[unit[n]]) for n in others)
        if words < _COUNTING_WORDS and len(others) < _COUNTING_TOKENS:
            return None
        return start + others[0], period

    def rewind(self, length: int) -> None:
        """Forget the last tokens.

        Args:
            length: how many tokens stay.
        """
        del self._tokens[length:]
        self._places = [place for place in self._places if place < length]
        self._all.rewind(length)
        self._words.rewind(len(self._places))
        if self._kinds:
            self._counting.rewind(len(self._places))

    def ends_with(self, unit: tuple[int, ...]) -> bool:
        """Whether the sequence ends with a cycle, numbers and signs aside.

        Args:
            unit: the tokens of a cycle.
        """
        wanted = [self._fold(token) for token in unit if not self._is_sign(token)]
        if not wanted:
            return self._tokens[-len(unit) :] == list(unit)
        places = self._places[-len(wanted) :]
        return [self._fold(self._tokens[place]) for place in places] == wanted

    def copy(self) -> "LoopDetector":
        """A detector that has seen the same."""
        other = copy.copy(self)
        other._tokens, other._places = self._tokens.copy(), self._places.copy()
        other._all, other._words = self._all.copy(), self._words.copy()
        other._counting = self._counting.copy()
        return other

    def _is_sign(self, token: int) -> bool:
        return self._kinds is not None and bool(self._kinds.is_sign[token])

    def _fold(self, token: int) -> int:
        return _NUMBER if self._kinds and self._kinds.is_number[token] else token
