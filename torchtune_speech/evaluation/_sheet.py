"""Samples with what each adds to every score: counted once, added up for any group of them."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torchtune_speech.evaluation._bootstrap import Statistic, mean
from torchtune_speech.evaluation._flags import row_flags
from torchtune_speech.evaluation._given import answer_texts, given_statistics
from torchtune_speech.evaluation._language import in_language
from torchtune_speech.evaluation._marks import mark_statistics
from torchtune_speech.evaluation._normalizers import REPORTED_NORMALIZERS
from torchtune_speech.evaluation._qa import qa_statistics
from torchtune_speech.evaluation._translation import translation_statistics
from torchtune_speech.evaluation._wer import wer_statistics

Row = Mapping[str, Any]
Key = TypeVar("Key", bound=Hashable)

TRANSLATION = ("st", "mt")
ANSWERS = ("sqa", "qa")


@dataclass(frozen=True, slots=True)
class Sheet:
    """Samples of one task; of translation, of one pair of languages.

    Attributes:
        task: the task.
        rows: the samples.
        flags: faults of each, see :func:`row_flags`.
        scores: score to its statistic. Error rates under the normalisers that every report shows
            are there as "wer/none", "cer/none" and so on, F1 of marks as "marks/punctuation".
        signatures: how scores of translation are computed.
    """

    task: str
    rows: list[Row]
    flags: list[list[str]]
    scores: dict[str, Statistic]
    signatures: dict[str, str]

    def take(self, indices: Sequence[int]) -> "Sheet":
        """The sheet of some of the samples."""
        return Sheet(
            self.task,
            [self.rows[index] for index in indices],
            [self.flags[index] for index in indices],
            {name: statistic.take(indices) for name, statistic in self.scores.items()},
            self.signatures,
        )

    def split(self, key: Callable[[Row], Any]) -> dict[Any, "Sheet"]:
        """The samples by a property of theirs; those of which it is None are left out."""
        return {name: self.take(indices) for name, indices in split(self.rows, key).items()}


def make_sheets(
    rows: Sequence[Row],
    normalizer: str,
    unanswerable: Mapping[str, str],
    *,
    normalizers: Sequence[str] = REPORTED_NORMALIZERS,
    ter: bool = True,
) -> list[Sheet]:
    """Count what every score of every sample is made of.

    Args:
        rows: samples of any mixture of tasks.
        normalizer: of "wer" and "cer".
        unanswerable: language to the answer that a question without an answer should get.
        normalizers: under which the error rates are counted as well.
        ter: False leaves TER out.

    Returns:
        A sheet for each task, in order of appearance; for translation, for each pair of languages.
    """
    sheets = []
    for task, indices in split(rows, lambda row: row["task"]).items():
        chosen = [rows[index] for index in indices]
        if task == "asr":
            sheets.append(_asr_sheet(chosen, [normalizer, *normalizers]))
        elif task in TRANSLATION:
            for (lang, _), pair in split(chosen, language_pair).items():
                sheets.append(_translation_sheet([chosen[i] for i in pair], lang, ter))
        else:
            sheets.append(_answer_sheet(chosen, unanswerable))
    return sheets


def language(row: Row) -> str:
    """The language that an output should be in."""
    # A transcript is in the language of the speech, whatever the row says about its target.
    field = "source_lang" if row["task"] == "asr" else "target_lang"
    return row.get(field) or "en"


def language_pair(row: Row) -> tuple[str, str]:
    """Target language and source language of a translation."""
    return language(row), row.get("source_lang") or "en"


def split(items: Iterable[Any], key: Callable[[Any], Key | None]) -> dict[Key, list[int]]:
    """The indices of items by a property of theirs; those of which it is None are left out."""
    groups = defaultdict(list)
    for index, item in enumerate(items):
        name = key(item)
        if name is not None:
            groups[name].append(index)
    return dict(groups)


def _asr_sheet(rows: list[Row], normalizers: list[str]) -> Sheet:
    langs = [language(row) for row in rows]
    counted = {
        name: wer_statistics(*_texts(rows), name, langs) for name in dict.fromkeys(normalizers)
    }
    # Marks come first: samples are sorted by the last score before any other when they are drawn,
    # so that the draws of the scores behind them are the same with and without marks.
    scores = {f"marks/{kind}": counts for kind, counts in mark_statistics(*_texts(rows)).items()}
    scores |= counted[normalizers[0]]
    for name in normalizers[1:]:
        scores |= {f"{score}/{name}": statistic for score, statistic in counted[name].items()}
    return Sheet("asr", rows, [row_flags(row, None) for row in rows], scores, {})


def _translation_sheet(rows: list[Row], lang: str, ter: bool) -> Sheet:
    scores, signatures = translation_statistics(*_texts(rows), lang, ter)
    return _sheet_with_language(rows, scores, signatures)


def _answer_sheet(rows: list[Row], unanswerable: Mapping[str, str]) -> Sheet:
    langs = [language(row) for row in rows]
    pairs = zip(*map(answer_texts, rows), strict=True)
    return _sheet_with_language(rows, qa_statistics(*map(list, pairs), langs, unanswerable), {})


def _sheet_with_language(
    rows: list[Row], scores: dict[str, Statistic], signatures: dict[str, str]
) -> Sheet:
    asked = [in_language(row["prediction"], language(row)) for row in rows]
    adherence = mean([found is True for found in asked], [found is not None for found in asked])
    flags = [row_flags(row, found) for row, found in zip(rows, asked, strict=True)]
    scores = {**scores, "adherence": adherence, **given_statistics(rows)}
    return Sheet(rows[0]["task"], rows, flags, scores, signatures)


def _texts(rows: list[Row]) -> tuple[list[str], list[str]]:
    return [row["target"] for row in rows], [row["prediction"] for row in rows]
