"""What the page of a report shows of its scores: cards, plots, one table, training curves."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Group = Mapping[str, Any]

# key of a score -> how the page names and writes it; "%" scores are fractions.
METRICS: dict[str, dict[str, Any]] = {
    "wer": {"label": "WER", "unit": "%", "lower": True},
    "bleu": {"label": "BLEU", "unit": "", "lower": False},
    "f1": {"label": "F1", "unit": "%", "lower": False},
    "accuracy": {"label": "accuracy", "unit": "%", "lower": False},
    "chrf": {"label": "chrF2", "unit": "", "lower": False},
    "ter": {"label": "TER", "unit": "", "lower": True},
    "comet": {"label": "COMET", "unit": "%", "lower": False},
    "comet_free": {"label": "COMET, reference-free", "unit": "%", "lower": False},
    "bertscore": {"label": "BERTScore", "unit": "%", "lower": False},
    "judge": {"label": "right by the judge", "unit": "%", "lower": False},
    "adherence": {"label": "in the language asked for", "unit": "%", "lower": False},
    "cer": {"label": "CER", "unit": "%", "lower": True},
    "answerable_accuracy": {"label": "accuracy, answerable", "unit": "%", "lower": False},
    "unanswerable_accuracy": {"label": "accuracy, unanswerable", "unit": "%", "lower": False},
    "containment": {"label": "right answer contained", "unit": "%", "lower": False},
    "match": {"label": "exact match", "unit": "", "lower": False},
}
TASKS = {
    "asr": "Speech recognition",
    "st": "Speech translation",
    "sqa": "Spoken question answering",
    "mt": "Text translation",
    "qa": "Question answering",
}
_COUNTS = {
    "empty": "empty",
    "loops": "loops",
    "length_finishes": "cut off",
    "wrong_language": "wrong language",
    "over_length": "twice as long",
    "under_length": "half as long",
}
_PARTS = {"durations": "duration", "answer_types": "kind of answer", "domains": "domain"}
_BARS = 60  # more domains than this are for the table
_POINTS = 400  # of a curve


def groups(report: Mapping[str, Any]) -> Iterator[tuple[str, str, Group]]:
    """The groups of scores in a report, or in one of its domains.

    Args:
        report: what :func:`~torchtune_speech.evaluation.score` returned.

    Yields:
        Task, language ("" for all of the task) and scores. A task with a single language and
        scores of its own comes once.
    """
    for task, scores in report.items():
        if not isinstance(scores, Mapping):
            continue
        languages = [
            (task, lang, group)
            for lang, group in scores.items()
            if isinstance(group, Mapping) and "n" in group and headline(group)
        ]
        if headline(scores):
            yield task, "", scores
            languages = languages if len(languages) > 1 else []
        yield from languages


def headline(group: Group) -> str:
    """The key of the score a group is known by; "" when it has none."""
    return next((key for key in METRICS if _is_number(group.get(key))), "")


def cards(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One card for each task; for each language where a task has no score over all.

    Args:
        report: the report.

    Returns:
        Cards with ``title``, ``lang``, ``n``, ``scores`` (headline first, see `_score`), the
        error rate under other normalisers, the F1 of marks, and counts of degenerate outputs.
    """
    result, whole = [], set()
    for task, lang, group in groups(report):
        if lang and task in whole:
            continue
        whole |= {task} if not lang else set()
        first = headline(group)
        keys = [first] + [key for key in METRICS if key != first and _is_number(group.get(key))]
        others = group.get("normalizers") or {}
        result.append(
            {
                "title": TASKS.get(task, task),
                "lang": lang,
                "n": _size(report, task, group),
                "scores": [_score(group, key) for key in keys],
                "others": [
                    {"label": f"normalizer {name}", **_score(scores, first)}
                    for name, scores in others.items()
                    if _is_number(scores.get(first))
                ]
                + [
                    {"label": f"F1 of {kind.replace('_', ' ')}", **_score(scores, "f1")}
                    for kind, scores in (group.get("marks") or {}).items()
                    if _is_number(scores.get("f1"))
                ],
                "counts": [[name, group[key]] for key, name in _COUNTS.items() if group.get(key)],
            }
        )
    return result


def charts(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Bars with intervals: by language, duration, kind of answer and domain.

    Args:
        report: the report; parts it lacks make no chart.

    Returns:
        Charts with ``title``, ``metric`` and ``sets``, each with a ``label`` ("" or a language)
        and ``bars`` of ``label``, ``n``, ``value`` and, where known, ``lo`` and ``hi``.
    """
    result = []
    by_task: dict[str, list[tuple[str, Group]]] = {}
    for task, lang, group in groups(report):
        by_task.setdefault(task, []).append((lang or "all", group))
    for task, pairs in by_task.items():
        if len(pairs) > 1 or (pairs and pairs[0][0] != "all"):
            result.append(_chart(task, "language", [("", pairs)]))
    for part, name in _PARTS.items():
        result += _part_charts(report.get(part) or {}, name)
    return result


def table(report: Mapping[str, Any]) -> dict[str, Any]:
    """All scores of a report as one table.

    Args:
        report: the report.

    Returns:
        ``metrics``, the keys of the columns, and ``rows`` of ``part``, ``task``, ``lang``, ``n``
        and ``scores`` by key.
    """
    sections = [("all", report)]
    for part, name in _PARTS.items():
        sections += [(f"{name} {key}", scores) for key, scores in (report.get(part) or {}).items()]
    rows = [
        {
            "part": part,
            "task": task,
            "lang": lang,
            "n": group.get("n"),
            "scores": {k: _score(group, k) for k in METRICS if _is_number(group.get(k))},
        }
        for part, scores in sections
        for task, lang, group in groups(scores)
    ]
    return {
        "metrics": [k for k in METRICS if any(k in row["scores"] for row in rows)],
        "rows": rows,
    }


def curves(training: Mapping[str, Sequence[Mapping[str, Any]]] | None) -> list[dict[str, Any]]:
    """The curves of a training run.

    Args:
        training: ``train``, rows with ``step`` and ``loss``; ``eval``, rows with ``step`` and any
            numbers.

    Returns:
        Curves with ``title``, ``metric`` (None for a loss) and ``series`` of ``label`` and
        ``points`` [step, value].
    """
    training = training or {}
    losses = []
    raw = _points(training.get("train") or [], "loss")
    if raw:
        losses.append({"label": "train", "faint": True, "points": _thin(raw)})
        losses.append({"label": "train, moving mean", "points": _thin(_moving_mean(raw))})
    evaluations = training.get("eval") or []
    keys = dict.fromkeys(key for row in evaluations for key in row)
    if held_out := _points(evaluations, "loss"):
        losses.append({"label": "evaluation", "dots": True, "points": _thin(held_out)})
    result = [{"title": "Loss", "metric": None, "series": losses}] if losses else []
    for key in keys:
        points = _points(evaluations, key)
        if points and key not in ("step", "epoch", "seconds", "samples", "tokens", "loss", "n"):
            metric = next((part for part in re.split(r"[_/. -]", key) if part in METRICS), None)
            title = METRICS[key]["label"] if key in METRICS else key
            series = [{"label": "evaluation", "dots": True, "points": _thin(points)}]
            result.append(
                {"title": f"{title} on held-out data", "metric": metric, "series": series}
            )
    return result


def _part_charts(parts: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Charts by duration, kind of answer or domain: one for each task, a set for each language."""
    if len(parts) < 2 or len(parts) > _BARS:
        return []
    sets: dict[str, dict[str, list[tuple[str, Group]]]] = {}
    for label, scores in parts.items():
        for task, lang, group in groups(scores):
            sets.setdefault(task, {}).setdefault(lang, []).append((label, group))
    # Where the task has a score of its own, its languages would only crowd the plot.
    chosen = {
        task: {"": by_lang[""]} if "" in by_lang else by_lang for task, by_lang in sets.items()
    }
    return [
        _chart(task, name, by_lang.items())
        for task, by_lang in chosen.items()
        if max(map(len, by_lang.values())) > 1
    ]


def _chart(task: str, by: str, sets: Iterable[tuple[str, list[tuple[str, Group]]]]) -> dict:
    sets = list(sets)
    metric = headline(sets[0][1][0][1])
    return {
        "title": f"{TASKS.get(task, task)}: {METRICS[metric]['label']} by {by}",
        "metric": metric,
        "sets": [
            {
                "label": label,
                "bars": [
                    {"label": name, "n": group.get("n"), **_score(group, metric)}
                    for name, group in pairs
                    if _is_number(group.get(metric))
                ],
            }
            for label, pairs in sets
        ],
    }


def _score(group: Group, key: str) -> dict[str, Any]:
    """``key``, ``value`` and, where the group has an interval for it, ``lo`` and ``hi``."""
    score = {"key": key, "value": group[key]}
    interval = (group.get("intervals") or {}).get(key)
    if interval and all(map(_is_number, interval)):
        score["lo"], score["hi"] = interval
    return score


def _size(report: Mapping[str, Any], task: str, group: Group) -> int | None:
    return group.get("n", (report.get("n") or {}).get(task))


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [
        (row["step"], row[key])
        for row in rows
        if _is_number(row.get("step")) and _is_number(row.get(key))
    ]


def _moving_mean(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means over the last twentieth of the run, so that a trend shows through the noise."""
    width = max(len(points) // 20, 1)
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    means = []
    for end, (step, _) in enumerate(points, start=1):
        start = max(end - width, 0)
        means.append((step, (sums[end] - sums[start]) / (end - start)))
    return means


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `_POINTS` points, evenly spaced, the last one among them."""
    stride = math.ceil(len(points) / _POINTS)
    return points[::-1][::stride][::-1] if stride > 1 else points


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
