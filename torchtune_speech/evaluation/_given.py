"""Scores that come from elsewhere: neural models and judges, one number a sample."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

from torchtune_speech.data import find_choice
from torchtune_speech.errors import InputError
from torchtune_speech.evaluation._bootstrap import Statistic, mean
from torchtune_speech.evaluation._judge import Ask, judge
from torchtune_speech.evaluation._neural import NeuralScores, bertscore, comet

# Names under which a row's own ``scores`` are averaged in a report.
GIVEN_SCORES = ("comet", "comet_free", "bertscore", "judge")

Row = MutableMapping[str, Any]


def given_statistics(rows: Sequence[Mapping[str, Any]]) -> dict[str, Statistic]:
    """Means of the scores that rows bring along under ``scores``.

    Args:
        rows: samples.

    Returns:
        Name to statistic, of those of :data:`GIVEN_SCORES` that a row has.
    """
    found = {}
    for name in GIVEN_SCORES:
        values = [(row.get("scores") or {}).get(name) for row in rows]
        if any(value is not None for value in values):
            counted = [value is not None for value in values]
            found[name] = mean([value or 0.0 for value in values], counted)
    return found


def answer_texts(row: Mapping[str, Any]) -> tuple[str, str]:
    """Reference and prediction; where one means an option of the question, the option's text.

    Args:
        row: an answer.

    Returns:
        Both texts.
    """
    choices = row.get("choices") or ()
    places = [find_choice(row[name], choices) if choices else None for name in _TEXTS]
    reference, prediction = (
        row[name] if place is None else choices[place]
        for name, place in zip(_TEXTS, places, strict=True)
    )
    return reference, prediction


_TEXTS = ("target", "prediction")


def check_source_texts(rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse translations that COMET cannot score.

    Args:
        rows: translations.

    Raises:
        InputError: naming the first without ``source_text``.
    """
    for row in rows:
        if row.get("source_text") is None:
            raise InputError(
                f"comet: sample {row['id']!r} has no source_text, which COMET reads; add it to the "
                "manifest and give that as manifest=PATH"
            )


def add_comet(
    rows: Sequence[Row], model: str, *, free: bool = False, **options: Any
) -> dict[str, str]:
    """COMET of each translation, into the rows' ``scores``.

    Args:
        rows: translations with ``source_text``, ``prediction`` and ``target``.
        model: see :func:`comet`.
        free: without the references, as ``comet_free``.
        **options: of :func:`comet`.

    Returns:
        The name of the score and its signature.

    Raises:
        InputError: if a row has no source text, or the model cannot be run.
    """
    check_source_texts(rows)
    references = None if free else [row["target"] for row in rows]
    found = comet(
        [row["source_text"] for row in rows],
        [row["prediction"] for row in rows],
        references,
        model=model,
        **options,
    )
    return _put(rows, "comet_free" if free else "comet", found)


def add_bertscore(rows: Sequence[Row], lang_of: Callable[[Row], str], **options: Any) -> dict:
    """BERTScore of each answer, into the rows' ``scores``.

    Args:
        rows: answers with ``prediction`` and ``target``; options of ``choices`` are read as their
            text.
        lang_of: row to language.
        **options: of :func:`bertscore`.

    Returns:
        The name of the score, and its signature by language.

    Raises:
        InputError: if the model cannot be run.
    """
    signatures = {}
    for lang in dict.fromkeys(map(lang_of, rows)):
        group = [row for row in rows if lang_of(row) == lang]
        references, predictions = zip(*map(answer_texts, group), strict=True)
        texts = list(predictions), list(references)
        signatures[lang] = _put(group, "bertscore", bertscore(*texts, lang, **options))["bertscore"]
    return {"bertscore": signatures}


def add_judge(rows: Sequence[Row], ask: Ask, name: str, prompt: str) -> dict[str, str]:
    """A judge's verdict on each answer, 1 or 0, into the rows' ``scores``.

    Args:
        rows: answers with ``question``, ``prediction`` and ``target``; options of ``choices`` are
            read as their text.
        ask: see :func:`judge`.
        name: of the judging model, for the signature.
        prompt: name of the packaged prompt.

    Returns:
        The name of the score and its signature.

    Raises:
        InputError: if a row has no question, or a verdict cannot be understood.
    """
    read = [
        {**row, "target": reference, "prediction": prediction}
        for row, (reference, prediction) in zip(rows, map(answer_texts, rows), strict=True)
    ]
    for row, verdict in zip(rows, judge(read, ask, prompt), strict=True):
        row["scores"] = {**(row.get("scores") or {}), "judge": float(verdict.correct)}
    return {"judge": f"judge:{name}|prompt:{prompt}"}


def _put(rows: Sequence[Row], name: str, found: NeuralScores) -> dict[str, str]:
    for row, value in zip(rows, found.scores, strict=True):
        row["scores"] = {**(row.get("scores") or {}), name: value}
    return {name: found.signature}
