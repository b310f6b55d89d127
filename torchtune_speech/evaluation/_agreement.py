"""How far a metric agrees with labels, with bootstrap intervals."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchtune_speech.evaluation._agreement_figures import (
    Floats,
    Integers,
    best_threshold,
    cross_fitted_accuracy,
    kendall_tau_b,
    pearson_r,
    roc_area,
)

CONFIDENCE = 0.95
_CHUNK = 2_000_000  # weights held at a time: 16 MB


def agreement(
    scores: Sequence[float | None],
    labels: Sequence[float | None],
    *,
    groups: Sequence[Hashable] | None = None,
    right_from: float | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """How far a metric agrees with labels, each figure with a bootstrap interval.

    - ``kendall``: Kendall's tau-b. Of all pairs of rows, those that metric and label put in the
      same order minus those they put in opposite order, over the geometric mean of the pairs not
      tied in the metric and those not tied in the label. With two labels a metric without ties
      reaches sqrt(2 p (1 - p)) at most, 0.71 for a share p = 0.5 of right rows, and a metric of
      two values 1: there, compare ``auc``.
    - ``pearson``: Pearson's r.
    - ``auc``: area under the ROC curve, the chance that a right row scores higher than a wrong
      one, ties counting one half.
    - ``accuracy``: share of the rows that a threshold on the metric sorts as the label does. On
      the rows that it was chosen on it would flatter the metric, so it is cross-fitted: rows are
      cut into two random halves, the threshold (and whether high or low scores are right) is
      chosen on each half and scored on the other. Compare with ``commonest``, which needs no
      metric. ``right_if`` names the best threshold on all rows, for use on new ones: ">= 0.4",
      "< 0.4", "always" or "never".

    Intervals are percentiles over resamples of the rows. A resample keeps every row in its half,
    so no row is ever judged by a threshold that its own copy helped to choose. Resamples in which
    a figure is not defined (all labels the same) are left out.

    Args:
        scores: values of the metric, one a row; None (or not finite) where it has none.
        labels: what is right, in the same order: 1 or True and 0 or False, or grades.
        groups: rows of one group (answers to one question) are drawn together and stay in one
            half; None draws rows one by one, too narrow an interval where rows depend on each
            other.
        right_from: grades from here on are right, those below wrong, for accuracy and ROC, which
            grades do not have otherwise; tau and r keep the labels as they are.
        num_resamples: bootstrap resamples.
        seed: seed of halves and resamples.

    Returns:
        ``kendall``, ``pearson``, ``auc`` and ``accuracy``, each ``{"value", "low", "high"}`` with
        the 95 % interval (None if no resample has the figure), or ``{"value": None, "reason"}``;
        ``right_if`` and ``commonest`` (share of the commoner label), None without right and wrong;
        ``n`` and ``left_out``, the rows used and those without score or label.

    Raises:
        ValueError: if the numbers of scores, labels and groups differ.

    Source: https://doi.org/10.1093/biomet/33.3.239 (tau-b),
        https://doi.org/10.1201/9780429246593 (percentile bootstrap)

    Example:
        >>> found = agreement([0.9, 0.7, 0.7, 0.1], [1, 1, 0, 0])
        >>> round(found["kendall"]["value"], 3), found["auc"]["value"], found["right_if"]
        (0.671, 0.875, '>= 0.4')
    """
    x, y, unit = _usable(scores, labels, groups)
    report: dict[str, Any] = {"n": len(x), "left_out": len(scores) - len(x)}
    reason = _no_spread(x, "score") or _no_spread(y, "label")
    right = y >= (1 if right_from is None else right_from)
    reason2 = reason
    if reason is None and right_from is None and not np.isin(y, (0, 1)).all():
        reason2 = "labels are not just 0 and 1; say from where on they are right"
    elif reason is None and len(np.unique(right)) < 2:
        reason2 = "all labels are on one side"

    # Ascending scores, and labels within a score: ties then are runs and never inversions.
    order = np.lexsort((y, x))
    x, y, unit, right = x[order], y[order], unit[order], right[order].astype(np.float64)
    half = _halves(unit, seed)
    figures: dict[str, tuple[str | None, Callable[[Floats], Floats]]] = {
        "kendall": (reason, lambda weights: kendall_tau_b(x, y, weights)),
        "pearson": (reason, lambda weights: pearson_r(x, y, weights)),
        "auc": (reason2, lambda weights: roc_area(x, right, weights)),
        "accuracy": (
            reason2 or (None if len(np.unique(unit)) > 1 else "one group: no second half"),
            lambda weights: cross_fitted_accuracy(x, right, half, weights),
        ),
    }
    for name, (missing, figure) in figures.items():
        report[name] = (
            {"value": None, "reason": missing}
            if missing
            else _with_interval(figure, unit, num_resamples, seed)
        )
    report["right_if"] = None if reason2 else best_threshold(x, right)
    report["commonest"] = None if reason2 else float(max(right.mean(), 1 - right.mean()))
    return report


def _usable(
    scores: Sequence[float | None],
    labels: Sequence[float | None],
    groups: Sequence[Hashable] | None,
) -> tuple[Floats, Floats, Integers]:
    names = range(len(scores)) if groups is None else groups
    numbers: dict[Hashable, int] = {}
    x, y, unit = [], [], []
    for score, label, name in zip(scores, labels, names, strict=True):
        if score is None or label is None or not np.isfinite([score, label]).all():
            continue
        x.append(float(score))
        y.append(float(label))
        unit.append(numbers.setdefault(name, len(numbers)))
    return np.array(x), np.array(y), np.array(unit, dtype=np.int64)


def _no_spread(values: Floats, name: str) -> str | None:
    if len(values) == 0:
        return "no rows"
    return f"every {name} is {values[0]:g}" if (values == values[0]).all() else None


def _with_interval(
    figure: Callable[[Floats], Floats], unit: Integers, num_resamples: int, seed: int
) -> dict[str, float | None]:
    value = float(figure(np.ones((1, len(unit))))[0])
    rng = np.random.default_rng((seed, 1))
    drawn: list[Floats] = []
    step = max(1, _CHUNK // len(unit))
    for start in range(0, num_resamples, step):
        drawn.append(figure(_resample(unit, min(step, num_resamples - start), rng)))
    tail = (1 - CONFIDENCE) / 2
    figures = np.concatenate(drawn) if drawn else np.array([np.nan])
    figures = figures[~np.isnan(figures)]
    if len(figures) == 0:
        return {"value": value, "low": None, "high": None}
    low, high = np.quantile(figures, [tail, 1 - tail])
    return {"value": value, "low": float(low), "high": float(high)}


def _resample(unit: Integers, count: int, rng: np.random.Generator) -> Floats:
    """How often each row was drawn; (count, rows)."""
    units = int(unit.max()) + 1
    # One call a resample: the same numbers come out however many resamples fit into memory.
    draws = [np.bincount(rng.integers(units, size=units), minlength=units) for _ in range(count)]
    return np.array(draws, dtype=np.float64)[:, unit]


def _halves(unit: Integers, seed: int) -> NDArray[np.bool_]:
    """Whether each row is in the second half; groups stay whole."""
    units = int(unit.max(initial=-1)) + 1
    second = np.random.default_rng((seed, 0)).permutation(units) >= (units + 1) // 2
    return second[unit]
