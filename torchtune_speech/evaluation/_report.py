"""One report on a file of predictions, and its table."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torchtune_speech.errors import InputError
from torchtune_speech.evaluation._degenerate import is_empty, repetition_loop
from torchtune_speech.evaluation._normalizers import base_language
from torchtune_speech.evaluation._qa import QA_SIGNATURE, UNANSWERABLE, qa
from torchtune_speech.evaluation._translation import bleu_chrf
from torchtune_speech.evaluation._wer import wer, wer_signature

Row = Mapping[str, Any]

_TRANSLATION = ("st", "mt")
_ANSWERS = ("sqa", "qa")
_PARTS = ("task", "language", "domain")


def score(
    predictions: Sequence[Row],
    normalizer: str = "whisper",
    by: Collection[str] = _PARTS,
    unanswerable: Mapping[str, str] = UNANSWERABLE,
) -> dict[str, Any]:
    """Score predictions of any mixture of tasks.

    ``asr`` gets error rates, ``st`` and ``mt`` BLEU and chrF by target language, ``sqa`` and ``qa``
    accuracy and F1. Any other task is scored like ``qa``, and ``notes`` says so.

    Every group also counts ``n``, ``empty`` (no letter or digit in the output), ``loops`` (the
    output ends in a repetition loop and its reference does not) and ``length_finishes`` (cut off by
    the limit on new tokens).

    Args:
        predictions: rows with ``task``, ``target`` and ``prediction``; ``source_lang`` and
            ``target_lang`` ("en" by default), ``domain`` and ``finish_reason`` where known.
        normalizer: name of the normaliser for the error rates.
        by: "language" adds scores by language to ``asr`` (unless all is English), ``sqa`` and
            ``qa``; "domain" adds ``domains`` (if a row has one). Tasks are always apart, and so are
            the target languages of translation.
        unanswerable: language to the answer that a question without an answer should get.

    Returns:
        A nested dictionary fit for JSON::

            {"asr": {"wer": 0.021, "cer": ..., "n": 200, ...},
             "st": {"de": {"bleu": 84.1, "chrf": ..., "n": 100, ...}, "it": ..., "zh": ...},
             "sqa": {"accuracy": 0.87, "f1": ..., "unanswerable_accuracy": ..., "en": {...}, ...},
             "empty": 0, "loops": 0, "length_finishes": 0, "normalizer": "whisper",
             "n": {"asr": 200, "st": 300, "sqa": 400},
             "domains": {"europarl": {"asr": {...}, ...}},
             "signatures": {"wer": ..., "bleu": {"de": ...}, "chrf": ..., "qa": ...}, "notes": []}

        Rates and accuracies are fractions, BLEU and chrF go from 0 to 100. The translation key is
        "en-de" instead of "de" when a target language is reached from several source languages.

    Raises:
        InputError: if there are no rows, a row lacks a field, or an argument is unknown.
    """
    _check(predictions, by)
    by_task = _split(predictions, lambda row: row["task"])
    report = _score_tasks(by_task, normalizer, "language" in by, unanswerable)
    report |= _counts(predictions)
    report["normalizer"] = normalizer
    report["n"] = {task: len(rows) for task, rows in by_task.items()}
    domains = _split(predictions, lambda row: row.get("domain") or "")
    if "domain" in by and any(domains):
        report["domains"] = {
            domain or "(none)": _score_tasks(
                _split(rows, lambda row: row["task"]), normalizer, "language" in by, unanswerable
            )
            for domain, rows in domains.items()
        }
    report["signatures"] = _collect_signatures(report, normalizer)
    report["notes"] = [
        f"task {task!r} has no measure of its own and was scored like qa"
        for task in by_task
        if task != "asr" and task not in _TRANSLATION + _ANSWERS
    ]
    return report


def _score_tasks(
    by_task: Mapping[str, list[Row]],
    normalizer: str,
    by_language: bool,
    unanswerable: Mapping[str, str],
) -> dict[str, Any]:
    report = {}
    for task, rows in by_task.items():
        if task == "asr":
            report[task] = _score_asr(rows, normalizer, by_language)
        elif task in _TRANSLATION:
            report[task] = _score_translation(rows)
        else:
            report[task] = _score_answers(rows, by_language, unanswerable)
    return report


def _score_asr(rows: list[Row], normalizer: str, by_language: bool) -> dict[str, Any]:
    def scores(rows: list[Row]) -> dict[str, Any]:
        langs = [_language(row) for row in rows]
        return wer(*_texts(rows), normalizer=normalizer, langs=langs) | _group_counts(rows)

    report = scores(rows)
    by_lang = _split(rows, _language)
    if by_language and {base_language(lang) for lang in by_lang} != {"en"}:
        report |= {lang: scores(rows) for lang, rows in by_lang.items()}
    return report


def _score_translation(rows: list[Row]) -> dict[str, Any]:
    report = {}
    for lang, group in _split(rows, _language).items():
        by_source = _split(group, lambda row: row.get("source_lang") or "en")
        for source, pair in by_source.items():
            key = lang if len(by_source) == 1 else f"{source}-{lang}"
            report[key] = bleu_chrf(*_texts(pair), lang=lang) | _group_counts(pair)
    return report


def _score_answers(
    rows: list[Row], by_language: bool, unanswerable: Mapping[str, str]
) -> dict[str, Any]:
    langs = [_language(row) for row in rows]
    report = qa(*_texts(rows), langs=langs, unanswerable=unanswerable)
    groups = {
        lang: report.pop(lang) | _counts(group) for lang, group in _split(rows, _language).items()
    }
    return report | _counts(rows) | (groups if by_language else {})


def _counts(rows: Iterable[Row]) -> dict[str, int]:
    counts = {"empty": 0, "loops": 0, "length_finishes": 0}
    for row in rows:
        counts["empty"] += is_empty(row["prediction"])
        counts["length_finishes"] += row.get("finish_reason") == "length"
        counts["loops"] += (
            repetition_loop(row["prediction"]) is not None
            and repetition_loop(row["target"]) is None
        )
    return counts


def _group_counts(rows: list[Row]) -> dict[str, int]:
    return {"n": len(rows)} | _counts(rows)


def _language(row: Row) -> str:
    # A transcript is in the language of the speech, whatever the row says about its target.
    field = "source_lang" if row["task"] == "asr" else "target_lang"
    return row.get(field) or "en"


def _texts(rows: list[Row]) -> tuple[list[str], list[str]]:
    return [row["target"] for row in rows], [row["prediction"] for row in rows]


def _split(rows: Iterable[Row], key: Any) -> dict[str, list[Row]]:
    groups = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(groups)


def _collect_signatures(report: dict[str, Any], normalizer: str) -> dict[str, Any]:
    """Move the signatures of translation out of the groups; name those of the other measures."""
    signatures: dict[str, Any] = {}
    for scores in (report, *report.get("domains", {}).values()):
        for task in scores:
            if task == "asr":
                signatures["wer"] = wer_signature(normalizer)
            elif task in _TRANSLATION:
                for key, group in scores[task].items():
                    signatures.setdefault("bleu", {})[key] = group.pop("bleu_signature")
                    signatures["chrf"] = group.pop("chrf_signature")
            elif isinstance(scores[task], dict) and "accuracy" in scores[task]:
                signatures["qa"] = QA_SIGNATURE
    return signatures


def _check(predictions: Sequence[Row], by: Collection[str]) -> None:
    unknown = sorted(set(by) - set(_PARTS))
    if unknown:
        raise InputError(f"by: unknown part {unknown[0]!r}; choose from {', '.join(_PARTS)}")
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


_COLUMNS = {
    # key of the report -> (heading, format)
    "n": ("n", "d"),
    "wer": ("WER", ".3f"),
    "cer": ("CER", ".3f"),
    "bleu": ("BLEU", ".1f"),
    "chrf": ("chrF2", ".1f"),
    "accuracy": ("accuracy", ".3f"),
    "f1": ("F1", ".3f"),
    "unanswerable_accuracy": ("unanswerable", ".3f"),
    "empty": ("empty", "d"),
    "loops": ("loops", "d"),
    "length_finishes": ("cut off", "d"),
}


def format_table(report: Mapping[str, Any]) -> str:
    """A report as an aligned table for the terminal.

    Args:
        report: what :func:`score` returned.

    Returns:
        A row for each task, language and domain (where there are several), with the columns that
        have a value, and below them the normaliser, the signatures and the notes.
    """
    domains = report.get("domains", {})
    domains = domains if len(domains) > 1 else {}
    rows = [("", *row) for row in _table_rows(report)]
    for domain, scores in domains.items():
        rows += [(domain, *row) for row in _table_rows(scores)]
    columns = [key for key in _COLUMNS if any(row[3].get(key) is not None for row in rows)]
    heads = ["domain"] if domains else []
    table = [heads + ["task", "language"] + [_COLUMNS[key][0] for key in columns]]
    for domain, task, lang, group in rows:
        cells = [_cell(group.get(key), _COLUMNS[key][1]) for key in columns]
        table.append([domain or "all"] * len(heads) + [task, lang or "all"] + cells)
    lines = _align(table, left=len(heads) + 2)
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines + [""] + _footer(report))


def _table_rows(scores: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(task, language or "", group) for each group of scores."""
    rows = []
    for task, report in scores.items():
        if task in ("n", "domains", "signatures") or not isinstance(report, Mapping):
            continue
        if task not in _TRANSLATION:
            rows.append((task, "", report))
        groups = [(task, lang, group) for lang, group in report.items() if isinstance(group, dict)]
        rows += groups if task in _TRANSLATION or len(groups) > 1 else []
    return rows


def _cell(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _align(table: list[list[str]], left: int) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def _footer(report: Mapping[str, Any]) -> list[str]:
    lines = [f"normalizer: {report['normalizer']}"]
    for name, signature in report["signatures"].items():
        if isinstance(signature, Mapping):
            lines += [f"{name} {lang}: {text}" for lang, text in signature.items()]
        else:
            lines.append(f"{name}: {signature}")
    return lines + [f"note: {note}" for note in report["notes"]]
