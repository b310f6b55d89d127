"""The report as one page: scores, plots, and every sample with its text, errors and sound."""

import html
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from torchtune_speech.evaluation._alignment import align_words
from torchtune_speech.evaluation._clips import collect_clips
from torchtune_speech.evaluation._page_scores import METRICS, TASKS, cards, charts, curves, table
from torchtune_speech.files import atomic_write

Row = Mapping[str, Any]

# Scores of a sample -> its share of errors, 0 for a perfect one. The first score it has decides.
_ERRORS = {
    "wer": lambda value: value,
    "chrf": lambda value: 1 - value / 100,
    "f1": lambda value: 1 - value,
    "match": lambda value: 1 - value,
}
# What the page shows of a sample as it is.
_FIELDS = ("id", "task", "domain", "speaker", "question", "source_text", "target", "prediction")


def write_html(
    path: str | os.PathLike[str],
    report: Mapping[str, Any],
    rows: Sequence[Row],
    *,
    training: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    audio_folder: str | os.PathLike[str] | None = None,
    max_audio_mb: float = 20.0,
) -> None:
    """Write a report as one HTML file that needs nothing else, neither network nor server.

    Args:
        path: the file to write.
        report: what :func:`~torchtune_speech.evaluation.score` returned. A group of scores may
            have ``intervals`` (score to [low, high]), ``asr`` may have ``normalizers`` (name to
            scores), and the report ``durations`` and ``answer_types`` in the form of ``domains``.
        rows: the samples: ``id``, ``task``, ``target``, ``prediction``; where known
            ``source_lang``, ``target_lang``, ``domain``, ``speaker``, ``question``,
            ``source_text``, ``finish_reason``, ``duration_s``, ``audio`` (path; ``offset`` and
            ``duration`` in seconds cut it), ``scores`` ({"wer": 0.2}, {"chrf": 43.1} or
            {"f1": 0.5, "match": 0}) and ``flags`` (empty, loop, wrong_language, length).
        training: ``train`` and ``eval``, rows with ``step`` and numbers such as ``loss``.
        audio_folder: what the paths of audio are relative to; None is the current folder.
        max_audio_mb: most audio to put into the page, in MB as it stands there. The worst samples
            of each task come first; all others get a link to their file.

    Example:
        >>> write_html("runs/report.html", score(rows), rows, audio_folder="data")
    """
    path = Path(path)
    worst = worst_order(rows)
    clips, places, unreadable = collect_clips(
        rows,
        _by_turns(worst, len(rows)),
        folder=audio_folder,
        page_folder=path.parent,
        budget_bytes=max_audio_mb * 1e6,
    )
    samples = _samples(rows, report.get("normalizer") or "whisper")
    for index, place in places.items():
        samples[index]["audio"] = place
    title = "Report" + "".join(f" · {Path(p).stem}" for p in report.get("predictions") or [])
    notes = list(report.get("notes") or [])
    if unreadable:
        notes.append(f"audio of {unreadable} samples is missing or cannot be read")
    page = {
        "title": title,
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "sources": [str(source) for source in report.get("predictions") or []],
        "metrics": METRICS,
        "tasks": TASKS,
        "cards": cards(report),
        "charts": charts(report),
        "curves": curves(training),
        "table": table(report),
        "samples": samples,
        "worst": worst,
        "normalizer": report.get("normalizer"),
        "signatures": _signatures(report.get("signatures") or {}),
        "notes": notes,
    }
    with atomic_write(path) as temporary:
        temporary.write_bytes(_render(title, page, clips))


def worst_order(rows: Sequence[Row]) -> dict[str, list[int]]:
    """For each task the samples with errors, worst first.

    Args:
        rows: the samples, with ``scores``.

    Returns:
        Task to indices of rows. Of samples with the same score, longer references come first: ten
        words wrong out of ten are worse than one out of one.
    """
    order: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if (_error(row) or 0) > 0:
            order.setdefault(row["task"], []).append(index)
    for indices in order.values():
        indices.sort(key=lambda i: (-_error(rows[i]), -len(rows[i]["target"])))
    return order


def _error(row: Row) -> float | None:
    scores = row.get("scores") or {}
    for key, error in _ERRORS.items():
        value = scores.get(key)
        if value is not None:
            return error(value) if math.isfinite(value) else None
    return None


def _by_turns(worst: Mapping[str, list[int]], count: int) -> list[int]:
    """All indices: the worst sample of each task, the second worst of each, ..., the rest."""
    ranked = [(rank, index) for indices in worst.values() for rank, index in enumerate(indices)]
    order = [index for _, index in sorted(ranked, key=lambda pair: pair[0])]
    return order + sorted(set(range(count)) - set(order))


def _samples(rows: Sequence[Row], normalizer: str) -> list[dict[str, Any]]:
    samples = []
    for row in rows:
        source, target = row.get("source_lang") or "en", row.get("target_lang") or "en"
        flags = list(row.get("flags") or [])
        if row.get("finish_reason") == "length" and "length" not in flags:
            flags.append("length")
        sample = {field: str(row[field]) for field in _FIELDS if row.get(field)}
        sample |= {
            "source_lang": source,
            # A transcript is in the language of the speech, whatever the row says of its target.
            "lang": source if row["task"] == "asr" else target,
            "seconds": row.get("duration_s"),
            "scores": dict(row.get("scores") or {}),
            "error": _error(row),
            "flags": flags,
        }
        samples.append({key: v for key, v in sample.items() if v not in (None, [], {})})
    spoken = [index for index, row in enumerate(rows) if row["task"] == "asr"]
    alignments = align_words(
        [rows[index]["target"] for index in spoken],
        [rows[index]["prediction"] for index in spoken],
        normalizer,
        [samples[index]["lang"] for index in spoken],
    )
    for index, pieces in zip(spoken, alignments, strict=True):
        if any(not piece.startswith("=") for piece in pieces):
            samples[index]["words"] = pieces
    return samples


def _signatures(signatures: Mapping[str, Any]) -> list[list[str]]:
    lines = []
    for name, signature in signatures.items():
        if isinstance(signature, Mapping):
            lines += [[f"{name} {lang}", str(text)] for lang, text in signature.items()]
        else:
            lines.append([name, str(signature)])
    return lines


def _render(title: str, page: Mapping[str, Any], clips: list[str]) -> bytes:
    template = (files(__package__) / "report_template.html").read_text(encoding="utf-8")
    parts = {"title": html.escape(title), "page": _json(page), "clips": _json(clips)}
    # In one pass: a placeholder inside the data is data.
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
    # Half a surrogate pair (a prediction cut within a character) has no UTF-8; JSON can spell it.
    return text.encode("utf-8", errors="backslashreplace")


def _json(value: Any) -> str:
    """JSON that may stand in a script element, whatever texts it holds."""
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # "<" is only ever inside strings: without it no "</script>" and no "<!--" can appear.
    return text.replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    """The value with null for numbers that JSON has no words for (a loss that is NaN)."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
