"""Which words were heard wrong: a reference and a prediction laid side by side."""

from collections.abc import Sequence

import jiwer

from torchtune_speech.evaluation._normalizers import join_unspaced, normalizer, split_words


def align_words(
    references: Sequence[str],
    predictions: Sequence[str],
    normalizer_name: str = "whisper",
    langs: str | Sequence[str] = "en",
) -> list[list[str]]:
    """The errors that a word error rate counts, in reading order.

    Texts are normalised and cut into words as for :func:`~torchtune_speech.evaluation.wer`, so the
    number of marked words is the number of errors there.

    Args:
        references: what was said, one text an utterance.
        predictions: what the model wrote, in the same order.
        normalizer_name: name of the normaliser put over both sides.
        langs: language of the texts, one for all or one each.

    Returns:
        For each pair its pieces, each a sign and words: ``"=right words"``, ``"~said written"``
        (one word in place of another), ``"-missing words"``, ``"+words that nobody said"``.

    Example:
        >>> align_words(["a big cat sat"], ["a cat sits down"], "basic")
        [['=a', '-big', '=cat', '~sat sits', '+down']]
    """
    langs = [langs] * len(references) if isinstance(langs, str) else langs
    clean = {lang: normalizer(normalizer_name, lang) for lang in set(langs)}
    pairs = [
        (split_words(clean[lang](reference)), split_words(clean[lang](prediction)))
        for reference, prediction, lang in zip(references, predictions, langs, strict=True)
    ]
    spoken = [pair for pair in pairs if pair[0]]  # releases of jiwer differ in empty references
    units = jiwer.Compose([])  # the words are given: nothing to split or to strip
    chunks = iter(
        jiwer.process_words(
            [reference for reference, _ in spoken],
            [predicted for _, predicted in spoken],
            reference_transform=units,
            hypothesis_transform=units,
        ).alignments
        if spoken
        else []
    )
    return [
        _pieces(*pair, next(chunks)) if pair[0] else [f"+{_join(pair[1])}"] * bool(pair[1])
        for pair in pairs
    ]


def _pieces(
    reference: list[str], predicted: list[str], chunks: Sequence[jiwer.AlignmentChunk]
) -> list[str]:
    pieces = []
    for chunk in chunks:
        said = reference[chunk.ref_start_idx : chunk.ref_end_idx]
        written = predicted[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "equal":
            pieces.append(f"={_join(said)}")
        elif chunk.type == "substitute":
            pieces += [f"~{old} {new}" for old, new in zip(said, written, strict=True)]
        elif chunk.type == "delete":
            pieces.append(f"-{_join(said)}")
        else:
            pieces.append(f"+{_join(written)}")
    return pieces


def _join(words: list[str]) -> str:
    return join_unspaced(" ".join(words))
