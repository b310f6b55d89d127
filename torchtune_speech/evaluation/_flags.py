"""What is wrong with an output at first sight, whatever its score."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torchtune_speech.evaluation._degenerate import is_empty, repetition_loop
from torchtune_speech.evaluation._normalizers import normalizer, split_words

# Words of the output per word of the reference.
OVER_LENGTH = 2.0
UNDER_LENGTH = 0.5
# Shorter references say little about length: "yes" for "yes, he does" is no fault.
MIN_REFERENCE_WORDS = 5

# flag of a row -> key of its count in a report
_COUNTS = {
    "empty": "empty",
    "loop": "loops",
    "length": "length_finishes",
    "over_length": "over_length",
    "under_length": "under_length",
    "wrong_language": "wrong_language",
}


def row_flags(row: Mapping[str, Any], is_asked_language: bool | None) -> list[str]:
    """The faults of one output.

    Args:
        row: with ``target`` and ``prediction``, and ``finish_reason`` where known.
        is_asked_language: whether the output is in the language asked for; None when undecided.

    Returns:
        Of these, those that hold: ``empty`` (no letter or digit), ``loop`` (ends in a repetition
        loop and the reference does not), ``length`` (cut off by the limit on new tokens),
        ``over_length`` and ``under_length`` (more than twice, less than half the words of a
        reference of at least 5; an empty output is just empty), ``wrong_language``.
    """
    prediction, target = row["prediction"], row["target"]
    empty = is_empty(prediction)
    ratio = 1.0 if empty else _length_ratio(target, prediction)
    faults = {
        "empty": empty,
        "loop": repetition_loop(prediction) is not None and repetition_loop(target) is None,
        "length": row.get("finish_reason") == "length",
        "over_length": ratio > OVER_LENGTH,
        "under_length": ratio < UNDER_LENGTH,
        "wrong_language": is_asked_language is False,
    }
    return [flag for flag, holds in faults.items() if holds]


def count_flags(flags: Iterable[Iterable[str]]) -> dict[str, int]:
    """How many outputs have each fault, under the keys of a report."""
    found = Counter(flag for row in flags for flag in row)
    return {key: found[flag] for flag, key in _COUNTS.items()}


def _length_ratio(target: str, prediction: str) -> float:
    clean = normalizer("basic")
    words = len(split_words(clean(target)))
    if words < MIN_REFERENCE_WORDS:
        return 1.0
    return len(split_words(clean(prediction))) / words
