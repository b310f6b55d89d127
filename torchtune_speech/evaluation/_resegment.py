"""Cutting one long prediction to fit the lines of its reference."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from torchtune_speech.errors import InputError

# Ends of sentences, closing quotes and brackets included. A Western mark counts before a blank
# only: "3.5" is one number.
_CLOSING = r"""["'”’»)\]」』）]*"""
_SENTENCE_END = re.compile(rf"[.!?…]+{_CLOSING}(?=\s|$)|[。！？｡]+{_CLOSING}")
_LINE_BREAK = re.compile(r"\s*\n\s*")

Spans = list[tuple[int, int]]


def resegment(prediction: str, references: Sequence[str], *, characters: bool = False) -> list[str]:
    """Cut a prediction into as many segments as there are reference lines.

    Of all ways to cut between its words, one with the smallest sum of edit distances (in words;
    substitution, insertion and deletion cost 1, case matters) between segments and reference lines
    is taken. Of several such ways, one with the most cuts behind the end of a sentence in the
    prediction is taken; of several of those, the one whose cuts come earliest. (There is one whose
    cuts are all as early as those of any other: where two paths through the table of distances
    cross, they can swap their ends.)

    Time grows with the product of the lengths, memory with lines times prediction: about a second
    and a few megabytes for two texts of 10,000 words.

    Args:
        prediction: the text, of one or several lines.
        references: lines of the reference; may be empty texts.
        characters: compare characters instead of words, whitespace left out, and cut between
            characters: for Chinese. Blanks inside a segment stay as they are; a line break becomes
            a blank, or nothing beside a Chinese or Japanese character.

    Returns:
        One segment for each reference, without outer whitespace: joined, they are the words
        (characters) of the prediction. Segments of an empty prediction are all "".

    Raises:
        InputError: if there is no reference.

    Source: https://aclanthology.org/2005.iwslt-1.19/

    Example:
        >>> resegment("a b. c e f.", ["a b.", "c d", "f."])
        ['a b.', 'c e', 'f.']
    """
    if not references:
        raise InputError("references: no line to cut the prediction for; give at least one")
    spans = _units(prediction, characters)
    units = [prediction[start:end] for start, end in spans]
    lines = [
        [reference[start:end] for start, end in _units(reference, characters)]
        for reference in references
    ]
    cuts = [0, *_best_cuts(units, lines, _is_sentence_end(prediction, spans)), len(units)]
    pairs = zip(cuts, cuts[1:], strict=False)
    if not characters:
        return [" ".join(units[first:last]) for first, last in pairs]
    return [
        _without_line_breaks(prediction[spans[first][0] : spans[last - 1][1]])
        if first < last
        else ""
        for first, last in pairs
    ]


def _units(text: str, characters: bool) -> Spans:
    """Where the words or characters are."""
    return [match.span() for match in re.finditer(r"\S" if characters else r"\S+", text)]


def _is_sentence_end(text: str, spans: Spans) -> NDArray[np.int64]:
    """For each cut from 0 to the number of units: 1 behind the end of a sentence, else 0."""
    ends = {match.end() for match in _SENTENCE_END.finditer(text)}
    return np.array([0, *(int(end in ends) for _, end in spans)], dtype=np.int64)


def _best_cuts(units: list[str], lines: list[list[str]], is_end: NDArray[np.int64]) -> list[int]:
    """Where the second and later segments begin.

    The table of edit distances has a row for each reference unit and a column for each cut of the
    prediction; only one row is kept. Its cells are ``distance * lines - ends) * width + start``:
    distance so far, cuts behind sentence ends so far, and where the current segment starts, in one
    number, so that the smallest number is the best by all three. At the end of each line the starts
    are put aside; from them the cuts are read off backwards.
    """
    width = len(units) + 1
    step = len(lines) * width  # what one edit costs
    column = np.arange(width, dtype=np.int64)
    numbers = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    ids = np.array([numbers[unit] for unit in units], dtype=np.int32)
    # Cells are kept less column * step: then an insertion, a step to the right, costs nothing.
    row = np.zeros(width, dtype=np.int64)
    starts = np.zeros((len(lines), width), dtype=np.int32)
    for number, line in enumerate(lines):
        if number:
            row = (row // width - is_end) * width + column
            np.minimum.accumulate(row, out=row)
        for unit in line:
            row = _next_row(row, ids == numbers.get(unit, -1), step)
        starts[number] = row % width
    cuts = []
    cut = len(units)
    for number in range(len(lines) - 1, 0, -1):
        cut = int(starts[number, cut])
        cuts.append(cut)
    return cuts[::-1]


def _next_row(row: NDArray[np.int64], is_match: NDArray[np.bool_], step: int) -> NDArray[np.int64]:
    """The row after one more reference unit."""
    below = row + step  # deletion
    # A substitution costs a step, less the step to the right; a match is one step cheaper.
    np.minimum(below[1:], row[:-1] - is_match * step, out=below[1:])
    return np.minimum.accumulate(below, out=below)


def _without_line_breaks(text: str) -> str:
    def replace(match: re.Match[str]) -> str:
        neighbours = text[match.start() - 1] + text[match.end()]
        return "" if any(unicodedata.east_asian_width(c) in "WF" for c in neighbours) else " "

    return _LINE_BREAK.sub(replace, text)
