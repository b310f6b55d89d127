"""Two systems on the same samples: differences, and whether they could be chance."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torchtune_speech.errors import InputError
from torchtune_speech.evaluation._bootstrap import BOOTSTRAP_SIGNATURE, paired_differences
from torchtune_speech.evaluation._given import GIVEN_SCORES
from torchtune_speech.evaluation._qa import UNANSWERABLE
from torchtune_speech.evaluation._report import check_rows, named_groups, split_parts
from torchtune_speech.evaluation._samples import scores_of_each
from torchtune_speech.evaluation._sheet import Sheet, make_sheets
from torchtune_speech.evaluation._table import align

Row = Mapping[str, Any]

COMPARABLE_PARTS = ("domain", "duration", "answer_type")
SIGNIFICANT = 0.05
# Score -> format; lower is better of those in _LOWER.
_FORMATS = {
    **dict.fromkeys(("wer", "cer"), ".4f"),
    **dict.fromkeys(("bleu", "chrf", "ter"), ".2f"),
    **dict.fromkeys(("accuracy", "f1", "containment"), ".4f"),
    **dict.fromkeys(("unanswerable_accuracy", "answerable_accuracy"), ".4f"),
    **dict.fromkeys(("adherence", *GIVEN_SCORES), ".4f"),
}
_LOWER = ("wer", "cer", "ter")
# By what samples are ranked: the first that their task has.
_RANKED_BY = ("wer", "chrf", "f1")
_LISTED = 5


def compare(
    rows_a: Sequence[Row],
    rows_b: Sequence[Row],
    *,
    normalizer: str = "whisper",
    by: Collection[str] = (),
    allow_missing: bool = False,
    ter: bool = True,
    unanswerable: Mapping[str, str] = UNANSWERABLE,
    names: tuple[str, str] = ("A", "B"),
) -> dict[str, Any]:
    """Compare the predictions of two systems, sample by sample.

    Args:
        rows_a: rows of the first system, as for :func:`score`, each with an ``id``.
        rows_b: rows of the second, with the same pairs of task and id, in any order.
        normalizer: of the error rates.
        by: any of "domain", "duration" and "answer_type", to compare on each of them too.
        allow_missing: compare the samples that both have, instead of refusing.
        ter: False leaves TER out, which takes long on Chinese.
        unanswerable: language to the answer that a question without an answer should get.
        names: what error messages call the systems.

    Returns:
        - ``groups``: for each task, language and part of ``by`` and each score, a dictionary with
          ``part``, ``task``, ``language`` ("" for all), ``score``, ``n``, ``a``, ``b``,
          ``difference`` (b - a), ``interval`` (95 %, of the difference), ``p_value``
          (two-sided, see :func:`paired_differences`), ``significant`` (p below 0.05) and
          ``better`` ("a" or "b" when significant, else None);
        - ``samples``: task and language to the samples that differ most, up to five that B does
          better (``b_better``) and worse (``a_better``), each with ``id``, ``score``, ``a``, ``b``;
        - ``normalizer``, ``n``, ``only_a`` and ``only_b`` (samples left out), ``signature``.

    Raises:
        InputError: for a bad row; if an id comes twice, is on one side only, or has two references.

    Source: https://aclanthology.org/W04-3250
    """
    unknown = sorted(set(by) - set(COMPARABLE_PARTS))
    if unknown:
        choices = ", ".join(COMPARABLE_PARTS)
        raise InputError(f"by: unknown part {unknown[0]!r}; choose from {choices}")
    pairs, only_a, only_b = _join(rows_a, rows_b, names, allow_missing)
    # What a sample is (language, domain, ...) is what the first file says; only predictions differ.
    own = [a for a, _ in pairs]
    others = [{**a, "prediction": b["prediction"], "scores": b.get("scores")} for a, b in pairs]
    sheets = [
        make_sheets(rows, normalizer, unanswerable, normalizers=(), ter=ter)
        for rows in (own, others)
    ]
    groups = _compare_groups("", *sheets)
    parts = [split_parts(system, by, unanswerable) for system in sheets]
    for part, of_a in parts[0].items():
        for name, group in of_a.items():
            groups += _compare_groups(name, group, parts[1][part][name])
    return {
        "groups": groups,
        "samples": _samples(*sheets),
        "normalizer": normalizer,
        "n": len(pairs),
        "only_a": only_a,
        "only_b": only_b,
        "signature": BOOTSTRAP_SIGNATURE.replace("interval:", "paired|interval:"),
    }


def _join(
    rows_a: Sequence[Row], rows_b: Sequence[Row], names: tuple[str, str], allow_missing: bool
) -> tuple[list[tuple[Row, Row]], int, int]:
    """Pairs of rows of the same sample, and how many samples are on one side only."""
    a, b = _by_id(rows_a, names[0]), _by_id(rows_b, names[1])
    only_a, only_b = [key for key in a if key not in b], [key for key in b if key not in a]
    for missing, here, there in ((only_a, *names), (only_b, *names[::-1])):
        if missing and not allow_missing:
            raise InputError(
                f"{there}: lacks {len(missing)} samples that {here} has (first: task "
                f"{missing[0][0]!r}, id {missing[0][1]!r}); give predictions for the same samples, "
                "or add --allow-missing to compare those that both have"
            )
    shared = [key for key in a if key in b]
    if not shared:
        raise InputError(
            f"{names[1]}: has no sample of {names[0]}; compare two systems on the same data"
        )
    for key in shared:
        if a[key]["target"] != b[key]["target"]:
            raise InputError(
                f"{names[1]}: another reference for task {key[0]!r}, id {key[1]!r}, than in "
                f"{names[0]}; score both on the same references"
            )
    return [(a[key], b[key]) for key in shared], len(only_a), len(only_b)


def _by_id(rows: Sequence[Row], name: str) -> dict[tuple[str, str], Row]:
    try:
        check_rows(rows)
    except InputError as error:
        raise InputError(f"{name}: {str(error).removeprefix('predictions: ')}") from None
    found: dict[tuple[str, str], Row] = {}
    for index, row in enumerate(rows):
        if row.get("id") is None:
            raise InputError(f"{name}: row {index} has no 'id'; rows are compared by task and id")
        key = row["task"], str(row["id"])
        if key in found:
            raise InputError(
                f"{name}: task {key[0]!r}, id {key[1]!r} comes twice; give each prediction once"
            )
        found[key] = row
    return found


def _compare_groups(part: str, a: list[Sheet], b: list[Sheet]) -> list[dict[str, Any]]:
    result = []
    for group_a, group_b in zip(_named(a), _named(b), strict=True):
        task, lang, sheet = group_a
        both = _scored_in_both(sheet.rows, group_b[2].rows)
        differences = paired_differences(
            *(
                {
                    name: statistic.only(both[name]) if name in both else statistic
                    for name, statistic in group[2].scores.items()
                }
                for group in (group_a, group_b)
            )
        )
        for score in filter(differences.get, _FORMATS):
            difference = differences[score]
            significant = difference.p_value < SIGNIFICANT
            better = "b" if (difference.difference > 0) != (score in _LOWER) else "a"
            result.append(
                {"part": part, "task": task, "language": lang, "score": score}
                | {"n": sum(both.get(score, [True] * len(sheet.rows)))}
                | asdict(difference)
                | {"significant": significant, "better": better if significant else None}
            )
    return result


def _scored_in_both(a: Sequence[Row], b: Sequence[Row]) -> dict[str, list[bool]]:
    """Of scores that rows bring along: whether both systems have it, for each sample."""
    return {
        name: [
            all((row.get("scores") or {}).get(name) is not None for row in pair)
            for pair in zip(a, b, strict=True)
        ]
        for name in GIVEN_SCORES
    }


def _named(sheets: list[Sheet]) -> list[tuple[str, str, Sheet]]:
    """Groups to compare; a single language is no group beside its task."""
    groups = named_groups(sheets, by_language=True)
    whole = {task: len(sheet.rows) for task, lang, sheet in groups if not lang}
    return [g for g in groups if not g[1] or len(g[2].rows) < whole.get(g[0], len(g[2].rows) + 1)]


def _samples(a: list[Sheet], b: list[Sheet]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The samples of each task (of translation, of each pair of languages) that differ most."""
    result = {}
    for (task, lang, sheet_a), (_, _, sheet_b) in zip(
        named_groups(a, by_language=False), named_groups(b, by_language=False), strict=True
    ):
        gains = []
        scores = zip(scores_of_each(sheet_a), scores_of_each(sheet_b), strict=True)
        for row, (score_a, score_b) in zip(sheet_a.rows, scores, strict=True):
            key = next(key for key in _RANKED_BY if key in score_a)
            gain = (score_b[key] - score_a[key]) * (-1 if key in _LOWER else 1)
            sample = {"id": str(row["id"]), "score": key, "a": score_a[key], "b": score_b[key]}
            gains.append((gain, sample))
        gains.sort(key=lambda pair: -pair[0])
        result[f"{task} {lang}".strip()] = {
            "b_better": [sample for gain, sample in gains[:_LISTED] if gain > 0],
            "a_better": [sample for gain, sample in gains[: -_LISTED - 1 : -1] if gain < 0],
        }
    return result


def format_comparison(comparison: Mapping[str, Any], names: tuple[str, str] = ("A", "B")) -> str:
    """A comparison as text for the terminal.

    Args:
        comparison: what :func:`compare` returned.
        names: of the two systems.

    Returns:
        A table with a row for each score, the samples that differ most, and how to read it.
    """
    groups = comparison["groups"]
    has_parts = any(group["part"] for group in groups)
    head = ["task", "language", "score", "n", "A", "B", "B - A", "95 % interval", "p", ""]
    table = [["part"] * has_parts + head]
    for group in groups:
        spec = _FORMATS[group["score"]]
        low, high = (format(bound, f"+{spec}") for bound in group["interval"])
        table.append(
            [group["part"] or "all"] * has_parts
            + [group["task"], group["language"] or "all", group["score"], str(group["n"])]
            + [format(group["a"], spec), format(group["b"], spec)]
            + [format(group["difference"], f"+{spec}"), f"{low} .. {high}"]
            + [f"{group['p_value']:.3f}"]
            + [f"* {group['better'].upper()} better" if group["significant"] else ""]
        )
    lines = align(table, left=3 + has_parts)
    lines.insert(1, "-" * max(map(len, lines)))
    lines = [f"A: {names[0]}", f"B: {names[1]}", "", *lines, "", *_sample_lines(comparison)]
    left_out = comparison["only_a"] + comparison["only_b"]
    if left_out:
        lines += [f"note: {left_out} samples are on one side only and were left out"]
    return "\n".join(
        [
            *lines,
            f"* p < {SIGNIFICANT}: a difference as clear as this is unlikely between equal systems",
            f"normalizer: {comparison['normalizer']}",
            f"bootstrap: {comparison['signature']}",
        ]
    )


def _sample_lines(comparison: Mapping[str, Any]) -> list[str]:
    lines = []
    for group, sides in comparison["samples"].items():
        for side, samples in sides.items():
            shown = ", ".join(
                f"{s['id']} ({format(s['a'], '.4g')} -> {format(s['b'], '.4g')})" for s in samples
            )
            if shown:
                lines.append(f"{group}, {side[0].upper()} better by {samples[0]['score']}: {shown}")
    return [*lines, ""] if lines else []
