"""A report as a table for the terminal."""

from collections.abc import Mapping
from typing import Any

from torchtune_speech.evaluation._normalizers import REPORTED_NORMALIZERS
from torchtune_speech.evaluation._sheet import TRANSLATION

Group = Mapping[str, Any]

_COLUMNS = {
    # key of a group -> (heading, format)
    "n": ("n", "d"),
    "wer": ("WER", ".3f"),
    **{f"wer/{name}": (f"WER {name}", ".3f") for name in REPORTED_NORMALIZERS},
    "cer": ("CER", ".3f"),
    "bleu": ("BLEU", ".1f"),
    "chrf": ("chrF2", ".1f"),
    "ter": ("TER", ".1f"),
    "comet": ("COMET", ".4f"),
    "comet_free": ("COMET free", ".4f"),
    "accuracy": ("accuracy", ".3f"),
    "f1": ("F1", ".3f"),
    "bertscore": ("BERTScore", ".4f"),
    "judge": ("judge", ".3f"),
    "unanswerable_accuracy": ("unanswerable", ".3f"),
    "adherence": ("in language", ".3f"),
    "empty": ("empty", "d"),
    "loops": ("loops", "d"),
    "length_finishes": ("cut off", "d"),
    "over_length": ("long", "d"),
    "under_length": ("short", "d"),
    "interval": ("95 % interval", "s"),
}
# What a row's interval is of: the first of these that it has.
_HEADLINES = ("wer", "bleu", "accuracy")
# Not worth a column unless there is one.
_RARE = ("over_length", "under_length")
_PARTS = {"domains": "{}", "durations": "{} s", "answer_types": "{}"}


def format_table(report: Mapping[str, Any]) -> str:
    """A report as an aligned table for the terminal.

    Args:
        report: what :func:`score` returned.

    Returns:
        A row for each task and language and, where there are several, for each domain, duration and
        kind of answer, with the columns that have a value; below them the normaliser, the
        signatures and the notes. The interval of a row is that of its WER (under the normaliser
        asked for), BLEU or accuracy.
    """
    rows = [("", *row) for row in _table_rows(report)]
    for part, name in _PARTS.items():
        groups = report.get(part, {})
        for key, scores in groups.items() if len(groups) > 1 else ():
            by_language = part == "domains"
            rows += [(name.format(key), *row) for row in _table_rows(scores, by_language)]
    rows = [(*row[:3], _flat(row[3])) for row in rows]
    columns = [key for key in _COLUMNS if any(_is_shown(key, row[3].get(key)) for row in rows)]
    heads = ["part"] if any(row[0] for row in rows) else []
    table = [heads + ["task", "language"] + [_COLUMNS[key][0] for key in columns]]
    for part, task, lang, group in rows:
        cells = [_cell(group.get(key), _COLUMNS[key][1]) for key in columns]
        table.append([part or "all"] * len(heads) + [task, lang or "all"] + cells)
    lines = align(table, left=len(heads) + 2)
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines + [""] + _footer(report))


def align(table: list[list[str]], left: int) -> list[str]:
    """Cells under each other, the first columns to the left and the others to the right.

    Args:
        table: rows of as many cells each.
        left: number of columns with text.

    Returns:
        A line for each row.
    """
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def _table_rows(
    scores: Mapping[str, Any], by_language: bool = True
) -> list[tuple[str, str, Group]]:
    """(task, language or "", group) for each group of scores."""
    rows = []
    for task, report in scores.items():
        if task in ("n", *_PARTS, "signatures", "mcif", "missing") or not isinstance(
            report, Mapping
        ):
            continue
        if task not in TRANSLATION:
            rows.append((task, "", report))
        groups = [
            (task, lang, group)
            for lang, group in report.items()
            if isinstance(group, Mapping) and "n" in group
        ]
        rows += groups if task in TRANSLATION or (by_language and len(groups) > 1) else []
    return rows


def _flat(group: Group) -> dict[str, Any]:
    """What a row of the table shows, by column."""
    flat = dict(group)
    for name, rates in group.get("normalizers", {}).items():
        flat[f"wer/{name}"] = rates["wer"]
    headline = next((key for key in _HEADLINES if group.get(key) is not None), None)
    if headline in group.get("intervals", {}):
        heading, spec = _COLUMNS[headline]
        low, high = (format(bound, spec) for bound in group["intervals"][headline])
        flat["interval"] = f"{heading} {low}-{high}"
    if group.get("normalizer") in group.get("normalizers", {}):
        del flat["wer"]  # it has a column of its own
    return flat


def _is_shown(key: str, value: Any) -> bool:
    return bool(value) if key in _RARE else value is not None


def _cell(value: Any, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _footer(report: Mapping[str, Any]) -> list[str]:
    lines = [f"normalizer: {report['normalizer']}"]
    for name, signature in report["signatures"].items():
        if isinstance(signature, Mapping):
            lines += [f"{name} {lang}: {text}" for lang, text in signature.items()]
        else:
            lines.append(f"{name}: {signature}")
    return lines + [f"note: {note}" for note in report["notes"]]
