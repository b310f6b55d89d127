"""Agreement of the metrics in a file of scored answers with its labels, as a report and a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from torchtune_speech.errors import InputError, did_you_mean
from torchtune_speech.evaluation._agreement import agreement

_FIGURES = {
    "kendall": "Kendall tau-b",
    "pearson": "Pearson r",
    "auc": "ROC area",
    "accuracy": "accuracy",
}
_FLAGS = "a number, true or false"


def agreement_table(
    rows: Sequence[Mapping[str, Any]],
    label: str,
    *,
    metrics: Sequence[str] | None = None,
    by: str | None = None,
    group: str | None = None,
    right_from: float | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
    where: str = "rows",
) -> dict[str, Any]:
    """How far each metric agrees with the labels, over all rows and within parts of them.

    Args:
        rows: a column for the label and one for each metric, numbers or booleans, in the row
            itself or in its ``scores``; null or absent where there is no value.
        label: column with what is right.
        metrics: columns to look at; by default those in ``scores``, else all numeric ones.
        by: column whose values part the rows, each part with a table of its own.
        group: column that rows which belong together share; see
            :func:`~torchtune_speech.evaluation.agreement`.
        right_from: labels from here on are right, where they are grades.
        num_resamples: bootstrap resamples.
        seed: seed of halves and resamples.
        where: name of the file, for errors.

    Returns:
        ``all``: metric to what :func:`~torchtune_speech.evaluation.agreement` gives; ``parts``:
        value of ``by`` to the same; ``label``, ``by``, ``num_resamples`` and ``seed``.

    Raises:
        InputError: if a column is nowhere, or a value is no number.

    Example:
        >>> rows = [{"f1": 0.9, "human": 1}, {"f1": 0.1, "human": 0}]
        >>> agreement_table(rows, "human")["all"]["f1"]["kendall"]["value"]
        1.0
    """
    if not rows:
        raise InputError(f"{where}: no rows; it needs one for each answer")
    if metrics is None:
        metrics = _numeric_columns(rows, leave_out={label, by, group})
        if not metrics:
            raise InputError(f"{where}: no column of numbers beside {label!r}; add the metrics'")
    values = {name: _column(rows, name, where) for name in (label, *metrics)}
    for name in filter(None, (by, group)):
        _check_present(rows, name, where)
    groups = [_group(row, group, index) for index, row in enumerate(rows)] if group else None

    def report(indices: Sequence[int]) -> dict[str, Any]:
        """The agreement of each metric on some of the rows."""
        return {
            metric: agreement(
                [values[metric][i] for i in indices],
                [values[label][i] for i in indices],
                groups=[groups[i] for i in indices] if groups else None,
                right_from=right_from,
                num_resamples=num_resamples,
                seed=seed,
            )
            for metric in metrics
        }

    parts: dict[str, list[int]] = {}
    for index, row in enumerate(rows if by else ()):
        parts.setdefault(str(row.get(by)), []).append(index)
    return {
        "label": label,
        "by": by,
        "num_resamples": num_resamples,
        "seed": seed,
        "all": report(range(len(rows))),
        "parts": {part: report(indices) for part, indices in parts.items()},
    }


def format_agreement(report: Mapping[str, Any]) -> str:
    """The report as text.

    Args:
        report: from :func:`agreement_table`.

    Returns:
        A table of aligned lines over all rows and one for each part; a dash stands where a figure
        cannot be had, and a line below says why.
    """
    blocks = [_block(f"all rows, against {report['label']}", report["all"])]
    for part, metrics in report["parts"].items():
        blocks.append(_block(f"{report['by']}: {part}", metrics))
    note = (
        f"[95 % intervals of {report['num_resamples']} bootstrap resamples]; accuracy: thresholds "
        "chosen on one half\nand scored on the other; right if: the best threshold on all rows."
    )
    return "\n\n".join([*blocks, note])


def _block(title: str, metrics: Mapping[str, Mapping[str, Any]]) -> str:
    header = ["metric", *_FIGURES.values(), "right if", "n", "left out"]
    table, reasons = [header], {}
    for name, found in metrics.items():
        figures = [_figure(found[figure]) for figure in _FIGURES]
        table.append(
            [name, *figures, found["right_if"] or "-", str(found["n"]), str(found["left_out"])]
        )
        for figure, heading in _FIGURES.items():
            if found[figure]["value"] is None:
                reasons.setdefault((name, found[figure]["reason"]), []).append(heading)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        for cells in table
    ]
    lines += [f"- {name}: {reason} ({', '.join(of)})" for (name, reason), of in reasons.items()]
    shares = {f"{f['commonest']:.3f}" for f in metrics.values() if f["commonest"] is not None}
    if len(shares) == 1:
        title += f" (always the commoner label: accuracy {shares.pop()})"
    return "\n".join([title, *lines])


def _figure(found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return "-"
    if found["low"] is None:
        return f"{found['value']:.3f} [-]"
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _lookup(row: Mapping[str, Any], name: str) -> Any:
    scores = row.get("scores")
    if isinstance(scores, Mapping) and name in scores:
        return scores[name]
    return row.get(name)


def _group(row: Mapping[str, Any], name: str, index: int) -> str | int:
    value = _lookup(row, name)
    return index if value is None else str(value)  # a row without a group is one of its own


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, None]:
    columns: dict[str, None] = {}
    for row in rows:
        nested = row.get("scores")
        columns |= dict.fromkeys([*(nested if isinstance(nested, Mapping) else ()), *row])
    columns.pop("scores", None)
    return columns


def _numeric_columns(
    rows: Sequence[Mapping[str, Any]], leave_out: set[str | None]
) -> Sequence[str]:
    nested = [row["scores"] for row in rows if isinstance(row.get("scores"), Mapping)]
    columns = dict.fromkeys(name for scores in nested for name in scores) or _columns(rows)
    return [
        name
        for name in columns
        if name not in leave_out
        and any(_lookup(row, name) is not None for row in rows)
        and all(isinstance(_lookup(row, name), int | float | None) for row in rows)
    ]


def _check_present(rows: Sequence[Mapping[str, Any]], name: str, where: str) -> None:
    if all(_lookup(row, name) is None for row in rows):
        columns = list(_columns(rows))
        hint = did_you_mean(name, columns) or f"; it has {', '.join(columns)}"
        raise InputError(f"{where}: no column {name!r} in any row{hint}")


def _column(rows: Sequence[Mapping[str, Any]], name: str, where: str) -> list[float | None]:
    _check_present(rows, name, where)
    values = [_lookup(row, name) for row in rows]
    for number, value in enumerate(values, start=1):
        if not isinstance(value, int | float | None):
            raise InputError(f"{where}: row {number}: {name!r} is {value!r}; it has to be {_FLAGS}")
    return values
