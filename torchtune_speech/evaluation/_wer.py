"""Word and character error rates over a whole test set."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import jiwer
import numpy as np

from torchtune_speech.errors import InputError
from torchtune_speech.evaluation._bootstrap import Floats, Statistic
from torchtune_speech.evaluation._normalizers import join_unspaced, normalizer, split_words


def wer(
    references: Sequence[str],
    predictions: Sequence[str],
    normalizer: str = "whisper",
    langs: str | Sequence[str] = "en",
) -> dict[str, Any]:
    """Word and character error rate, at corpus level: all errors over all reference words.

    A mean of the rates of single utterances would give a short utterance the weight of a long one
    and is no word error rate. In Chinese and Japanese text each character counts as a word and
    whitespace is no character, so that WER and CER agree there.

    A reference without a word left after normalisation is legal ("uh" under "whisper"): the
    words predicted for it are insertions. Without a single word in all references, the rate is the
    number of insertions. An empty prediction deletes all words of its reference.

    Args:
        references: what was said, one text an utterance.
        predictions: what the model wrote, in the same order.
        normalizer: name of the normaliser put over both sides, see
            :func:`~torchtune_speech.evaluation.normalizer`.
        langs: language of the texts, one for all or one each.

    Returns:
        ``wer`` and ``cer`` as fractions; ``insertions``, ``deletions``, ``substitutions`` and
        ``reference_words`` in words; ``normalizer``.

    Raises:
        InputError: if the numbers of texts differ or there are none.

    Example:
        >>> wer(["a b c d", "e"], ["a b c d", "f"], normalizer="basic")["wer"]
        0.2
    """
    statistics = wer_statistics(references, predictions, normalizer, langs)
    return (
        {name: statistic.score() for name, statistic in statistics.items()}
        | word_counts(statistics["wer"])
        | {"normalizer": normalizer}
    )


def wer_statistics(
    references: Sequence[str],
    predictions: Sequence[str],
    normalizer: str,
    langs: str | Sequence[str],
) -> dict[str, Statistic]:
    """What each utterance adds to the error rates; arguments as for :func:`wer`.

    Returns:
        ``wer`` and ``cer``; their counts are insertions, deletions, substitutions and the length
        of the reference.

    Raises:
        InputError: if the numbers of texts differ or there are none.
    """
    check_pairs(references, predictions)
    references, predictions = _normalize(references, predictions, normalizer, langs)
    pairs = list(zip(references, predictions, strict=True))
    words = _errors([(split_words(r), split_words(p)) for r, p in pairs])
    characters = _errors([(list(join_unspaced(r)), list(join_unspaced(p))) for r, p in pairs])
    return {"wer": Statistic(words, _rate), "cer": Statistic(characters, _rate)}


def word_counts(statistic: Statistic) -> dict[str, int]:
    """The errors of all utterances by kind, and their reference words."""
    kinds = ("insertions", "deletions", "substitutions", "reference_words")
    return dict(zip(kinds, map(int, statistic.sums()), strict=True))


def wer_signature(normalizer: str) -> str:
    """How an error rate was computed, in the manner of sacrebleu's signatures."""
    tools = f"jiwer:{version('jiwer')}"
    if normalizer == "whisper":
        tools += f"|whisper_normalizer:{version('whisper_normalizer')}|rules:0.0.10"
    return f"level:corpus|norm:{normalizer}|zh:char|{tools}"


def check_pairs(references: Sequence[str], predictions: Sequence[str]) -> None:
    """Refuse lists that cannot be compared line by line.

    Raises:
        InputError: if the lengths differ or are zero.
    """
    if len(references) != len(predictions):
        raise InputError(
            f"predictions: {len(predictions)} texts for {len(references)} references; "
            "give one prediction for each reference"
        )
    if not references:
        raise InputError("references: no text to score; give at least one")


def _normalize(
    references: Sequence[str],
    predictions: Sequence[str],
    name: str,
    langs: str | Sequence[str],
) -> tuple[list[str], list[str]]:
    langs = [langs] * len(references) if isinstance(langs, str) else langs
    clean = {lang: normalizer(name, lang) for lang in set(langs)}
    return (
        [clean[lang](text) for lang, text in zip(langs, references, strict=True)],
        [clean[lang](text) for lang, text in zip(langs, predictions, strict=True)],
    )


def _errors(pairs: list[tuple[list[str], list[str]]]) -> Floats:
    """Insertions, deletions, substitutions and reference units of each pair, ``(pairs, 4)``."""
    # Releases of jiwer differ in what they do with an empty reference: all of its words are
    # insertions. The others get their errors below.
    counts = np.array(
        [
            [0 if reference else len(predicted), 0, 0, len(reference)]
            for reference, predicted in pairs
        ],
        dtype=np.float64,
    )
    spoken = [index for index, (reference, _) in enumerate(pairs) if reference]
    if spoken:
        units = jiwer.Compose([])  # the units are given: nothing to split or to strip
        out = jiwer.process_words(
            [pairs[index][0] for index in spoken],
            [pairs[index][1] for index in spoken],
            reference_transform=units,
            hypothesis_transform=units,
        )
        for index, chunks in zip(spoken, out.alignments, strict=True):
            counts[index, :3] = _kinds(chunks)
    return counts


def _kinds(chunks: Sequence[jiwer.AlignmentChunk]) -> list[int]:
    lengths = {"insert": 0, "delete": 0, "substitute": 0, "equal": 0}
    for chunk in chunks:
        # An insertion has no reference units, a deletion no predicted ones.
        lengths[chunk.type] += max(
            chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx
        )
    return [lengths["insert"], lengths["delete"], lengths["substitute"]]


def _rate(sums: Floats) -> Floats:
    return sums[:, :3].sum(axis=1) / np.maximum(sums[:, 3], 1)
