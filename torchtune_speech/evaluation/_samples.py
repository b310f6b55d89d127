"""Scores of single samples: to find the bad ones, not to be averaged into scores of a corpus."""

from collections.abc import Mapping, Sequence
from typing import Any

from torchtune_speech.evaluation._qa import UNANSWERABLE
from torchtune_speech.evaluation._report import check_rows
from torchtune_speech.evaluation._sheet import TRANSLATION, Sheet, make_sheets

Row = Mapping[str, Any]


def sample_scores(
    rows: Sequence[Row],
    normalizer: str = "whisper",
    unanswerable: Mapping[str, str] = UNANSWERABLE,
) -> list[dict[str, Any]]:
    """Scores and faults of each sample.

    Args:
        rows: samples of any mixture of tasks, as for :func:`score`.
        normalizer: of the error rates.
        unanswerable: language to the answer that a question without an answer should get.

    Returns:
        For each row, in order, ``scores`` and ``flags``. Scores are ``wer`` of a transcript (a
        fraction; above 1 when more words are wrong than were said), ``chrf`` of a translation (0 to
        100), ``f1`` (0 to 1) and ``match`` (0 or 1) of an answer. For flags see :func:`row_flags`.

    Raises:
        InputError: if there are no rows, or a row lacks a field.

    Example:
        >>> sample_scores([{"task": "asr", "target": "a big dog", "prediction": "a dog"}])
        [{'scores': {'wer': 0.3333333333333333}, 'flags': []}]
    """
    check_rows(rows)
    numbered = [{**row, "_index": index} for index, row in enumerate(rows)]
    result: list[dict[str, Any]] = [{}] * len(rows)
    for sheet in make_sheets(numbered, normalizer, unanswerable, normalizers=(), ter=False):
        for row, scores, flags in zip(sheet.rows, scores_of_each(sheet), sheet.flags, strict=True):
            result[row["_index"]] = {"scores": scores, "flags": flags}
    return result


def scores_of_each(sheet: Sheet) -> list[dict[str, float]]:
    """The scores of each sample of a sheet, in its order."""
    if sheet.task == "asr":
        return [{"wer": wer} for wer in sheet.scores["wer"].each()]
    if sheet.task in TRANSLATION:
        return [{"chrf": chrf} for chrf in sheet.scores["chrf"].each()]
    matches = sheet.scores["accuracy"].each()
    return [
        {"f1": f1, "match": int(match)}
        for f1, match in zip(sheet.scores["f1"].each(), matches, strict=True)
    ]
