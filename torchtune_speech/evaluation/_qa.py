"""Answers to questions: exact match, token F1, containment, and refusals."""

import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import regex

from torchtune_speech.evaluation._bootstrap import Statistic, mean
from torchtune_speech.evaluation._normalizers import base_language, normalizer, split_words
from torchtune_speech.evaluation._wer import check_pairs

# The answers that the IWSLT Instruction-following task expects to unanswerable questions.
UNANSWERABLE: Mapping[str, str] = {
    "en": "Not answerable.",
    "de": "Nicht zu beantworten.",
    "it": "Non è possibile rispondere.",
    "zh": "无法回答。",
}

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
QA_SIGNATURE = "norm:squad|articles:en|zh:char|choices:option"


def qa(
    references: Sequence[str],
    predictions: Sequence[str],
    langs: str | Sequence[str],
    unanswerable: Mapping[str, str] = UNANSWERABLE,
) -> dict[str, Any]:
    """Accuracy, F1 and containment of answers, in all and by language.

    Both sides are normalised: English as for SQuAD, lower case without punctuation and articles;
    other languages in lower case, with blanks for punctuation, but for apostrophes inside a word.

    Args:
        references: right answers, one a question.
        predictions: answers of the model, in the same order.
        langs: language of the answers, one for all or one each.
        unanswerable: language to the answer that a question without an answer should get; a
            question whose reference is this answer counts as unanswerable.

    Returns:
        ``accuracy`` (exact match), ``f1`` (token overlap, mean over questions), ``containment``
        (share of answers that hold the right answer, see :func:`contains_answer`),
        ``unanswerable_accuracy`` and ``answerable_accuracy`` (exact match on the two kinds of
        question; None without such a question) as fractions, ``n``, ``n_unanswerable``,
        ``normalizer``; the same again under each language.

    Raises:
        InputError: if the numbers of texts differ or there are none.

    Example:
        >>> qa(["The garden", "Not answerable."], ["garden.", "In May"], "en")["accuracy"]
        0.5
    """
    check_pairs(references, predictions)
    langs = [langs] * len(references) if isinstance(langs, str) else list(langs)
    statistics = qa_statistics(references, predictions, langs, unanswerable)
    report = qa_scores(statistics)
    for lang in dict.fromkeys(langs):
        chosen = [index for index, other in enumerate(langs) if other == lang]
        report[lang] = qa_scores({name: s.take(chosen) for name, s in statistics.items()})
    return report


def exact_match(reference: str, prediction: str, lang: str = "en") -> bool:
    """Whether two answers are the same after normalisation.

    Args:
        reference: right answer.
        prediction: answer of the model.
        lang: language of the answer.

    Returns:
        True when equal.
    """
    return _normalize(reference, lang) == _normalize(prediction, lang)


def answer_f1(reference: str, prediction: str, lang: str = "en") -> float:
    """Overlap of two answers in words (characters in Chinese), as for SQuAD.

    Args:
        reference: right answer.
        prediction: answer of the model.
        lang: language of the answer.

    Returns:
        Harmonic mean of precision and recall of the words, 0 to 1.

    Source: https://arxiv.org/abs/1606.05250
    """
    right = split_words(_normalize(reference, lang))
    given = split_words(_normalize(prediction, lang))
    if not right or not given:
        return float(right == given)
    return 2 * sum((Counter(right) & Counter(given)).values()) / (len(right) + len(given))


def contains_answer(reference: str, prediction: str, lang: str = "en") -> bool:
    """Whether an answer holds the right answer, in the same words (characters in Chinese) in a row.

    Exact match for short references and answers that may be sentences. More words never do harm
    here: an answer that lists everything, or denies what is right, holds the right answer, too.

    Args:
        reference: right answer.
        prediction: answer of the model.
        lang: language of the answer.

    Returns:
        True when it is there after normalisation.

    Example:
        >>> contains_answer("At the station.", "The doctor waits at the station.")
        True
    """
    right = split_words(_normalize(reference, lang))
    given = split_words(_normalize(prediction, lang))
    if not right:
        return not given
    starts = range(len(given) - len(right) + 1)
    return any(given[start : start + len(right)] == right for start in starts)


def qa_statistics(
    references: Sequence[str],
    predictions: Sequence[str],
    langs: Sequence[str],
    unanswerable: Mapping[str, str],
) -> dict[str, Statistic]:
    """What each question adds to the scores of :func:`qa`; arguments as there.

    Returns:
        ``accuracy``, ``f1``, ``containment``, ``unanswerable_accuracy`` and
        ``answerable_accuracy``.
    """
    rows = list(zip(references, predictions, langs, strict=True))
    matches = [exact_match(*row) for row in rows]
    refusals = [is_unanswerable(reference, lang, unanswerable) for reference, _, lang in rows]
    return {
        "accuracy": mean(matches),
        "f1": mean([answer_f1(*row) for row in rows]),
        "containment": mean([contains_answer(*row) for row in rows]),
        "unanswerable_accuracy": mean(matches, refusals),
        "answerable_accuracy": mean(matches, [not refusal for refusal in refusals]),
    }


def qa_scores(statistics: Mapping[str, Statistic]) -> dict[str, Any]:
    """The scores of :func:`qa` from what each question adds to them."""
    refusals = int(statistics["unanswerable_accuracy"].sums()[1])
    return {name: statistic.score() for name, statistic in statistics.items()} | {
        "n": len(statistics["accuracy"].counts),
        "n_unanswerable": refusals,
        "normalizer": "squad",
    }


def is_unanswerable(reference: str, lang: str, unanswerable: Mapping[str, str]) -> bool:
    """Whether a reference is the refusal that its language expects."""
    phrase = {base_language(tag): text for tag, text in unanswerable.items()}.get(
        base_language(lang)
    )
    return phrase is not None and exact_match(phrase, reference, lang)


def _normalize(text: str, lang: str) -> str:
    # An answer may be all punctuation or a bare article (option "A"): it must not become equal to
    # an empty prediction.
    english = base_language(lang) == "en"
    # SQuAD deletes punctuation: "U.S." is "us", "1,000" is "1000". The rest becomes a blank.
    bare = text.translate(_NO_PUNCTUATION) if english else text
    text = normalizer("basic")(bare) or normalizer("basic")(text) or text.strip()
    if english:
        text = " ".join(regex.sub(r"\b(a|an|the)\b", " ", text).split()) or text
    return text
