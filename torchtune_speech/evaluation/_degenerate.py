"""Outputs that are no answer: nothing at all, or the same few words for ever."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from torchtune_speech.evaluation._normalizers import normalizer, split_words


@dataclass(frozen=True, slots=True)
class Loop:
    """A cycle at the end of a sequence.

    Attributes:
        unit: the units that repeat (words, characters or token ids).
        start: index of the first unit of the first cycle.
        length: number of units from there on, an unfinished last cycle included.
    """

    unit: tuple[Hashable, ...]
    start: int
    length: int

    @property
    def repeats(self) -> int:
        """Number of whole cycles."""
        return self.length // len(self.unit)


def is_empty(text: str) -> bool:
    """Whether a text says nothing: no letter and no digit, in any script.

    Args:
        text: an output of the model.

    Returns:
        True for "", whitespace and mere punctuation such as "!!!".
    """
    return not any(character.isalnum() for character in text)


def repetition_loop(
    text_or_tokens: str | Sequence[Hashable],
    min_repeats: int = 3,
    min_length: int = 10,
) -> Loop | None:
    """The loop in which a sequence ends, if it does.

    A loop is a tail that repeats one unit ``min_repeats`` times or more and is ``min_length`` units
    long, so that short repetition as people use it ("no no", "very very good", "and so on and so
    on") is none. One last unit may break the cycle: the output limit cuts words in two.

    A text is cut into words without case and punctuation, and into single characters in Chinese and
    Japanese. One endless word ("hahaha...") is a loop too, from 16 cycles on, and so is the same
    phrase of four words or more with another number each time, from 6 cycles on.

    Args:
        text_or_tokens: an output of the model, as text or as token ids.
        min_repeats: fewest whole cycles.
        min_length: fewest units in the loop.

    Returns:
        The loop with the shortest cycle, or None.

    Example:
        >>> repetition_loop("I see the cat, the cat, the cat, the cat, the cat, the c").unit
        ('the', 'cat')
        >>> repetition_loop("a very very very good idea") is None
        True
    """
    if not isinstance(text_or_tokens, str):
        return _tail_cycle(text_or_tokens, min_repeats, min_length)
    words = split_words(normalizer("basic")(text_or_tokens))
    loop = _tail_cycle(words, min_repeats, min_length)
    if loop is None and (chunks := text_or_tokens.split()):
        loop = _tail_cycle(chunks[-1], 16, 16)
    return loop or _counting_loop(words)


def _counting_loop(words: Sequence[str]) -> Loop | None:
    folded = ["#" if word.isdigit() else word for word in words]
    loop = _tail_cycle(folded, 6, 24)
    if loop is None or sum(word != "#" for word in loop.unit) < 4:
        return None
    return Loop(tuple(words[loop.start : loop.start + len(loop.unit)]), loop.start, loop.length)


def _tail_cycle(units: Sequence[Hashable], min_repeats: int, min_length: int) -> Loop | None:
    for end in (len(units), len(units) - 1):
        for period in range(1, end // min_repeats + 1):
            start = end - period
            while start > 0 and units[start - 1] == units[start - 1 + period]:
                start -= 1
            length = end - start
            if length >= max(min_repeats * period, min_length):
                return Loop(tuple(units[start : start + period]), start, length)
    return None
