"""Word and character error rates over a whole test set."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import jiwer

from torchtune_speech.errors import InputError
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
    check_pairs(references, predictions)
    references, predictions = _normalize(references, predictions, normalizer, langs)
    pairs = list(zip(references, predictions, strict=True))
    words = _errors([(split_words(r), split_words(p)) for r, p in pairs])
    characters = _errors([(list(join_unspaced(r)), list(join_unspaced(p))) for r, p in pairs])
    return {
        "wer": _rate(words),
        "cer": _rate(characters),
        "insertions": words["insertions"],
        "deletions": words["deletions"],
        "substitutions": words["substitutions"],
        "reference_words": words["reference"],
        "normalizer": normalizer,
    }


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


def _errors(pairs: list[tuple[list[str], list[str]]]) -> dict[str, int]:
    """Counts of errors over pairs of (reference units, predicted units)."""
    counts = {
        # Releases of jiwer differ in what they do with an empty reference: count those here.
        "insertions": sum(len(predicted) for reference, predicted in pairs if not reference),
        "deletions": 0,
        "substitutions": 0,
        "reference": sum(len(reference) for reference, _ in pairs),
    }
    pairs = [pair for pair in pairs if pair[0]]
    if pairs:
        units = jiwer.Compose([])  # the units are given: nothing to split or to strip
        out = jiwer.process_words(
            [reference for reference, _ in pairs],
            [predicted for _, predicted in pairs],
            reference_transform=units,
            hypothesis_transform=units,
        )
        for kind in ("insertions", "deletions", "substitutions"):
            counts[kind] += getattr(out, kind)
    return counts


def _rate(counts: dict[str, int]) -> float:
    errors = counts["insertions"] + counts["deletions"] + counts["substitutions"]
    return errors / max(counts["reference"], 1)
