"""Punctuation, word boundaries and capitals of a transcript: what most normalisers throw away."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import regex
from rapidfuzz.distance import Levenshtein

from torchtune_speech.evaluation._bootstrap import Floats, Statistic
from torchtune_speech.evaluation._normalizers import PUNCTUATION, join_unspaced
from torchtune_speech.evaluation._wer import check_pairs

_PATTERNS = {
    "punctuation": PUNCTUATION,
    "word_boundaries": regex.compile(" "),
    "capitals": regex.compile(r"\p{Lu}"),
}
MARKS = tuple(_PATTERNS)
MARKS_SIGNATURE = f"level:corpus|align:characters|case:folded|rapidfuzz:{version('rapidfuzz')}"


def marks(references: Sequence[str], predictions: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How well punctuation, word boundaries and capitals are recovered, at corpus level.

    Both texts are aligned character by character, by the fewest edits and without regard to case.
    A mark is found when it is aligned with the same mark: a full stop in the place of a comma is
    one mark missed and one too many. Of several alignments with as few edits one is taken.

    - ``punctuation``: what the normaliser "basic" takes away, punctuation and symbols, but for
      apostrophes inside a word;
    - ``word_boundaries``: spaces inside the text. Next to Chinese and Japanese characters they mean
      nothing, and are taken away first;
    - ``capitals``: capital letters, found when aligned with the same letter as a capital.

    Word errors count as far as they change marks: the comma behind a misheard word may be found.

    Args:
        references: what was said, written with its marks, one text an utterance.
        predictions: what the model wrote, in the same order.

    Returns:
        For each of the three ``precision`` (of the marks predicted), ``recall`` (of those in the
        references) and ``f1``, their harmonic mean, as fractions; ``found``, ``reference`` and
        ``predicted``, numbers of marks. All three scores are None where the references have no
        such mark, the precision also where the predictions have none.

    Raises:
        InputError: if the numbers of texts differ or there are none.

    Source: precision, recall and F1 of punctuation, https://doi.org/10.21437/Interspeech.2016-1517;
        on aligned texts, as the punctuation error rate of https://arxiv.org/abs/2310.02943. That
        characters are aligned, and that spaces and capitals are counted the same way, is ours.

    Example:
        >>> marks(["Yes, it is."], ["Yes it is."])["punctuation"]["recall"]
        0.5
    """
    statistics = mark_statistics(references, predictions)
    return {kind: mark_scores(statistic) for kind, statistic in statistics.items()}


def mark_statistics(references: Sequence[str], predictions: Sequence[str]) -> dict[str, Statistic]:
    """What each utterance adds to the F1 of each kind of mark; arguments as for :func:`marks`.

    Returns:
        Kind to statistic; its counts are the marks found, in the reference and in the prediction.

    Raises:
        InputError: if the numbers of texts differ or there are none.
    """
    check_pairs(references, predictions)
    counts = np.array(
        [_count(*map(_prepare, pair)) for pair in zip(references, predictions, strict=True)],
        dtype=np.float64,
    )
    return {kind: Statistic(counts[:, index], _f1) for index, kind in enumerate(MARKS)}


def mark_scores(statistic: Statistic) -> dict[str, Any]:
    """Precision, recall, F1 and the counts behind them, of one kind of mark."""
    found, reference, predicted = map(int, statistic.sums())
    return {
        "precision": found / predicted if reference and predicted else None,
        "recall": found / reference if reference else None,
        "f1": statistic.score(),
        "found": found,
        "reference": reference,
        "predicted": predicted,
    }


def _prepare(text: str) -> str:
    return join_unspaced(" ".join(text.replace("\u2019", "'").split()))


def _count(reference: str, prediction: str) -> list[tuple[int, int, int]]:
    """Marks found, in the reference and in the prediction, of each kind."""
    # Letter by letter: the lower case of a whole text may have another length ("İ").
    folded = ([character.lower() for character in text] for text in (reference, prediction))
    aligned: dict[int, int] = {}
    for block in Levenshtein.opcodes(*folded):
        if block.tag == "equal":
            aligned |= zip(
                range(block.src_start, block.src_end),
                range(block.dest_start, block.dest_end),
                strict=True,
            )
    counts = []
    for pattern in _PATTERNS.values():
        written, read = (
            {match.start() for match in pattern.finditer(text)} for text in (reference, prediction)
        )
        found = sum(aligned.get(place) in read for place in written)
        counts.append((found, len(written), len(read)))
    return counts


def _f1(sums: Floats) -> Floats:
    found, reference, predicted = sums.T
    undefined = np.full(len(sums), np.nan)
    return np.divide(2 * found, reference + predicted, out=undefined, where=reference > 0)
