"""One report on a file of predictions."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torchtune_speech.errors import InputError
from torchtune_speech.evaluation._bootstrap import BOOTSTRAP_SIGNATURE, bootstrap_intervals
from torchtune_speech.evaluation._flags import count_flags
from torchtune_speech.evaluation._given import GIVEN_SCORES
from torchtune_speech.evaluation._language import LANGUAGE_SIGNATURE
from torchtune_speech.evaluation._marks import MARKS, MARKS_SIGNATURE, mark_scores
from torchtune_speech.evaluation._normalizers import REPORTED_NORMALIZERS, base_language
from torchtune_speech.evaluation._parts import (
    ANSWER_TYPES,
    answer_type,
    bucket_names,
    duration_bucket,
)
from torchtune_speech.evaluation._qa import QA_SIGNATURE, UNANSWERABLE, qa_scores
from torchtune_speech.evaluation._sheet import (
    ANSWERS,
    TRANSLATION,
    Sheet,
    language,
    language_pair,
    make_sheets,
)
from torchtune_speech.evaluation._wer import wer_signature, word_counts

Row = Mapping[str, Any]

VERSION = 2
PARTS = ("task", "language", "domain", "duration", "answer_type")


def score(
    predictions: Sequence[Row],
    normalizer: str = "whisper",
    by: Collection[str] = PARTS,
    unanswerable: Mapping[str, str] = UNANSWERABLE,
    *,
    intervals: bool = True,
    ter: bool = True,
) -> dict[str, Any]:
    """Score predictions of any mixture of tasks.

    ``asr`` gets error rates and the F1 of marks, ``st`` and ``mt`` BLEU, chrF and TER by target
    language, ``sqa`` and ``qa`` accuracy and F1. Any other task is scored like ``qa``, and
    ``notes`` says so.

    Every group also has ``n``, counts of faulty outputs (see :func:`row_flags`), but for ``asr``
    the share in the language asked for, and 95 % intervals of all scores by resampling samples.

    Args:
        predictions: rows with ``task``, ``target`` and ``prediction``; ``source_lang`` and
            ``target_lang`` ("en" by default), ``domain``, ``finish_reason``, ``duration_s`` (of
            the speech) and ``choices`` where known. ``scores`` of their own (comet, comet_free,
            bertscore, judge) are averaged.
        normalizer: name of the normaliser for ``wer`` and ``cer``.
        by: "language" adds scores by language to ``asr`` (unless all is English), ``sqa`` and
            ``qa``; "domain" adds ``domains`` and "duration" ``durations`` (if a row has one),
            "answer_type" ``answer_types`` (if a question is among the rows). Tasks are always
            apart, and so are the target languages of translation.
        unanswerable: language to the answer that a question without an answer should get.
        intervals: False leaves the intervals out: most of the time on many small groups.
        ter: False leaves TER out, which takes up to a tenth of a second for a Chinese sentence.

    Returns:
        A nested dictionary fit for JSON; docs/report_schema.md describes every field::

            {"version": 2,
             "asr": {"wer": 0.021, "cer": ..., "n": 200, "intervals": {"wer": [0.015, 0.028]},
                     "normalizers": {"none": {"wer": ..., "cer": ...}, "whisper": ...},
                     "marks": {"punctuation": {"precision": ..., "recall": ..., "f1": ...}, ...},
                     ...},
             "st": {"de": {"bleu": 84.1, "chrf": ..., "ter": ..., "n": 100, ...}, "it": ...},
             "sqa": {"accuracy": 0.87, "f1": ..., "containment": ..., "en": {...}, ...},
             "empty": 0, "loops": 0, "length_finishes": 0, ..., "normalizer": "whisper",
             "n": {"asr": 200, "st": 300, "sqa": 400},
             "domains": {"europarl": {"asr": {...}, ...}}, "durations": {"0-5": {"asr": ...}},
             "answer_types": {"yes/no": {"sqa": ...}},
             "signatures": {"wer": ..., "bleu": {"de": ...}, "chrf": ..., "qa": ...}, "notes": []}

        Rates, accuracies and shares are fractions, BLEU, chrF and TER are in percent. The
        translation key is "en-de" instead of "de" when a target language is reached from several
        source languages.

    Raises:
        InputError: if there are no rows, a row lacks a field, or an argument is unknown.
    """
    _check(predictions, by)
    sheets = make_sheets(predictions, normalizer, unanswerable, ter=ter)
    options = {
        "normalizer": normalizer,
        "by_language": "language" in by,
        "intervals": intervals,
    }
    report = {"version": VERSION} | _score_tasks(sheets, **options)
    report |= count_flags(flags for sheet in sheets for flags in sheet.flags)
    report["normalizer"] = normalizer
    report["n"] = {}
    for sheet in sheets:
        report["n"][sheet.task] = report["n"].get(sheet.task, 0) + len(sheet.rows)
    for part, groups in split_parts(sheets, by, unanswerable).items():
        report[part] = {name: _score_tasks(group, **options) for name, group in groups.items()}
    report["signatures"] = _signatures(sheets, normalizer, intervals)
    report["notes"] = [
        f"task {task!r} has no measure of its own and was scored like qa"
        for task in report["n"]
        if task != "asr" and task not in TRANSLATION + ANSWERS
    ]
    return report


def split_parts(
    sheets: list[Sheet], by: Collection[str], unanswerable: Mapping[str, str]
) -> dict[str, dict[str, list[Sheet]]]:
    """The samples by domain, duration and kind of answer.

    Args:
        sheets: all samples.
        by: which of "domain", "duration" and "answer_type" are wanted.
        unanswerable: language to the answer that a question without an answer should get.

    Returns:
        "domains", "durations" and "answer_types", those that are wanted and that a sample has, to
        name and sheets.
    """
    questions = [sheet for sheet in sheets if sheet.task in ANSWERS]
    parts = {}
    if "domain" in by and any(row.get("domain") for sheet in sheets for row in sheet.rows):
        # Tasks without any domain would only be repeated under "(none)".
        named = [sheet for sheet in sheets if any(row.get("domain") for row in sheet.rows)]
        parts["domains"] = _split_all(named, lambda row: row.get("domain") or "(none)")
    if "duration" in by:
        parts["durations"] = _split_all(sheets, duration_bucket, bucket_names())
    if "answer_type" in by:
        parts["answer_types"] = _split_all(
            questions, lambda row: answer_type(row, unanswerable), ANSWER_TYPES
        )
    return {part: groups for part, groups in parts.items() if groups}


def _split_all(sheets: list[Sheet], key: Any, order: Sequence[str] = ()) -> dict[str, list[Sheet]]:
    groups: dict[str, list[Sheet]] = {name: [] for name in order}
    for sheet in sheets:
        for name, group in sheet.split(key).items():
            groups.setdefault(name, []).append(group)
    return {name: group for name, group in groups.items() if group}


def named_groups(sheets: list[Sheet], by_language: bool) -> list[tuple[str, str, Sheet]]:
    """The groups that are scored: tasks and their languages.

    Args:
        sheets: samples of all tasks.
        by_language: whether tasks that have a score over all languages are split by language too.

    Returns:
        Task, name of the language or pair ("" for all of the task), samples. Translation has no
        group over all, and English transcripts have no group of their own where all are English.
    """
    # By these very samples: a domain may have a single source language where others have two.
    sources = Counter(
        (sheet.task, language_pair(sheet.rows[0])[0])
        for sheet in sheets
        if sheet.task in TRANSLATION
    )
    groups = []
    for sheet in sheets:
        if sheet.task in TRANSLATION:
            lang, source = language_pair(sheet.rows[0])
            name = lang if sources[sheet.task, lang] == 1 else f"{source}-{lang}"
            groups.append((sheet.task, name, sheet))
            continue
        groups.append((sheet.task, "", sheet))
        langs = sheet.split(language)
        all_english = sheet.task == "asr" and {base_language(lang) for lang in langs} == {"en"}
        if by_language and not all_english:
            groups += [(sheet.task, lang, group) for lang, group in langs.items()]
    return groups


def _score_tasks(
    sheets: list[Sheet], normalizer: str, by_language: bool, intervals: bool
) -> dict[str, Any]:
    report: dict[str, Any] = {}
    for task, lang, sheet in named_groups(sheets, by_language):
        group = _score_group(sheet, normalizer, intervals)
        if lang:
            report.setdefault(task, {})[lang] = group
        else:
            report[task] = group
    return report


def _score_group(sheet: Sheet, normalizer: str, intervals: bool) -> dict[str, Any]:
    ranges = bootstrap_intervals(sheet.scores) if intervals else None
    if sheet.task == "asr":
        group = _asr_scores(sheet, normalizer, ranges)
    elif sheet.task in TRANSLATION:
        group = {
            name: round(sheet.scores[name].score(), 4)
            for name in ("bleu", "chrf", "ter")
            if name in sheet.scores
        }
    else:
        others = ("adherence", *GIVEN_SCORES)
        answers = {name: s for name, s in sheet.scores.items() if name not in others}
        group = qa_scores(answers)
    if "adherence" in sheet.scores:
        group["adherence"] = sheet.scores["adherence"].score()
        group["adherence_n"] = int(sheet.scores["adherence"].sums()[1])
    given = (name for name in GIVEN_SCORES if name in sheet.scores)
    group |= {name: sheet.scores[name].score() for name in given}
    group |= {"n": len(sheet.rows)} | count_flags(sheet.flags)
    if ranges is not None:
        group["intervals"] = {name: range_ for name, range_ in ranges.items() if "/" not in name}
    return group


def _asr_scores(
    sheet: Sheet, normalizer: str, ranges: Mapping[str, list[float]] | None
) -> dict[str, Any]:
    scores = {name: sheet.scores[name].score() for name in ("wer", "cer")}
    scores |= word_counts(sheet.scores["wer"]) | {"normalizer": normalizer}
    scores["normalizers"] = {}
    for name in REPORTED_NORMALIZERS:
        rates = {rate: sheet.scores[f"{rate}/{name}"].score() for rate in ("wer", "cer")}
        if ranges is not None:
            shown = ("wer", "cer") if ranges else ()
            rates["intervals"] = {rate: ranges[f"{rate}/{name}"] for rate in shown}
        scores["normalizers"][name] = rates
    scores["marks"] = {kind: mark_scores(sheet.scores[f"marks/{kind}"]) for kind in MARKS}
    for kind, found in scores["marks"].items() if ranges is not None else ():
        # A kind of mark that no reference has is undefined, and has no interval.
        has_range = f"marks/{kind}" in ranges
        found["intervals"] = {"f1": ranges[f"marks/{kind}"]} if has_range else {}
    return scores


def _signatures(sheets: list[Sheet], normalizer: str, intervals: bool) -> dict[str, Any]:
    """How each score was computed; where it depends on the language, by language."""
    signatures: dict[str, Any] = {}
    for task, lang, sheet in named_groups(sheets, by_language=False):
        if task == "asr":
            signatures |= {"wer": wer_signature(normalizer), "marks": MARKS_SIGNATURE}
            continue
        if task in TRANSLATION:
            signatures.setdefault("bleu", {})[lang] = sheet.signatures["bleu"]
            signatures["chrf"] = sheet.signatures["chrf"]
            if "ter" in sheet.signatures:
                signatures.setdefault("ter", {})[lang] = sheet.signatures["ter"]
        else:
            signatures["qa"] = QA_SIGNATURE
        signatures["adherence"] = LANGUAGE_SIGNATURE
    return signatures | ({"intervals": BOOTSTRAP_SIGNATURE} if intervals else {})


def _check(predictions: Sequence[Row], by: Collection[str]) -> None:
    unknown = sorted(set(by) - set(PARTS))
    if unknown:
        raise InputError(f"by: unknown part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    check_rows(predictions)


# Keys of a report that no task may be called.
_RESERVED = frozenset(
    "version empty loops length_finishes over_length under_length wrong_language normalizer n "
    "domains durations answer_types signatures notes predictions missing mcif".split()
)


def check_rows(predictions: Sequence[Row]) -> None:
    """Refuse rows that cannot be scored.

    Raises:
        InputError: if there are none, one lacks a field, or its task is called like a field of the
            report.
    """
    for name in sorted({str(row.get("task")) for row in predictions} & _RESERVED):
        raise InputError(f"predictions: task {name!r} is a field of reports; call it otherwise")
    if not predictions:
        raise InputError("predictions: no row to score; give at least one")
    for index, row in enumerate(predictions):
        for field in ("task", "target", "prediction"):
            if not isinstance(row.get(field), str):
                where = f"id {row['id']!r}" if "id" in row else f"row {index}"
                raise InputError(
                    f"predictions: {where} has no {field!r}; every row needs task, target "
                    "and prediction as text"
                )
        scores = row.get("scores") or {}
        if not isinstance(scores, Mapping):
            where = f"id {row['id']!r}" if "id" in row else f"row {index}"
            raise InputError(f"predictions: {where}: scores is no object; write names and numbers")
        choices = row.get("choices") or []
        if not isinstance(choices, list | tuple) or not all(isinstance(c, str) for c in choices):
            where = f"id {row['id']!r}" if "id" in row else f"row {index}"
            raise InputError(f"predictions: {where}: choices is no list of texts; write it as one")
