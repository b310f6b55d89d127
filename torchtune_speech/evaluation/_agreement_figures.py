"""Rank correlation, correlation, ROC area and accuracy of many weighted resamples at once."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def kendall_tau_b(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Kendall's tau-b of weighted rows, a weight of 2 being the same as the row twice.

    Inversions are counted bit by bit of the labels' ranks, as a radix sort would meet them: one
    pass for two labels, log2(labels) passes else, each of them over all resamples at once.

    Args:
        x: scores, ascending; (rows,).
        y: labels, ascending within rows of one score; (rows,).
        weights: whole numbers; (resamples, rows).

    Returns:
        tau-b of each resample, NaN where all its scores or all its labels are the same.
    """
    _, rank = np.unique(y, return_inverse=True)
    _, score = np.unique(x, return_inverse=True)
    total = weights.sum(1)
    all_pairs = _pairs(total)
    tied_x = _tied_pairs(score, weights)
    tied_y = _tied_pairs(rank, weights)
    tied_both = _tied_pairs(score * (rank.max() + 1) + rank, weights)
    against = _inversions(rank, weights)
    # Of the pairs tied in neither, those that are not against are for.
    balance = all_pairs - tied_x - tied_y + tied_both - 2 * against
    return _divide(balance, np.sqrt((all_pairs - tied_x) * (all_pairs - tied_y)))


def _pairs(count: Floats) -> Floats:
    return count * (count - 1) / 2


def _tied_pairs(tie: Integers, weights: Floats) -> Floats:
    return _pairs(_sum_by(tie, weights)).sum(1)


def _sum_by(key: Integers, weights: Floats) -> Floats:
    """Sums of the weights of each key, keys ascending; (resamples, keys)."""
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    return np.add.reduceat(weights[:, order], starts, axis=1)


def _inversions(rank: Integers, weights: Floats) -> Floats:
    """Pairs of which the earlier one has the higher rank, for each resample."""
    found = np.zeros(len(weights))
    for bit in reversed(range(int(rank.max()).bit_length())):
        # Rows that agree in all higher bits, in their old order: of those, a one before a zero.
        prefix = rank >> (bit + 1)
        order = np.argsort(prefix, kind="stable")
        prefix, ones = prefix[order], (rank[order] >> bit & 1).astype(np.float64)
        weight = weights[:, order]
        before = np.cumsum(weight * ones, axis=1)
        start = np.searchsorted(prefix, prefix)  # of each row's own prefix
        earlier = np.where(start > 0, before[:, start - 1], 0)
        found += ((before - earlier) * weight * (1 - ones)).sum(1)
    return found


def pearson_r(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Pearson's r of weighted rows.

    Args:
        x: scores; (rows,).
        y: labels; (rows,).
        weights: whole numbers; (resamples, rows).

    Returns:
        r of each resample, NaN where all its scores or all its labels are the same.
    """
    # Centred first: scores close together far from zero would lose their digits.
    x, y = x - x.mean(), y - y.mean()
    total = weights.sum(1)
    mean_x, mean_y = weights @ x / total, weights @ y / total
    covariance = weights @ (x * y) / total - mean_x * mean_y
    spread_x, spread_y = (weights @ v**2 / total - m**2 for v, m in ((x, mean_x), (y, mean_y)))
    # A resample of one value has rounding errors for a spread.
    flat = (spread_x <= 1e-12 * (x @ x) / len(x)) | (spread_y <= 1e-12 * (y @ y) / len(y))
    spread = np.where(flat, 0, spread_x * spread_y)
    return np.clip(_divide(covariance, np.sqrt(spread)), -1, 1)


def roc_area(x: Floats, right: Floats, weights: Floats) -> Floats:
    """Area under the ROC curve of weighted rows.

    Args:
        x: scores; (rows,).
        right: 1 for right rows, 0 for wrong ones; (rows,).
        weights: whole numbers; (resamples, rows).

    Returns:
        The area for each resample, NaN where all its rows are right or all wrong.
    """
    wins = _below_cut(x, 1 - right, weights)
    _, score = np.unique(x, return_inverse=True)
    positives = _sum_by(score, weights * right)
    # Cut g has the wrong ones below score g; half of those at the same score count.
    won = (positives * (wins[:, :-1] + wins[:, 1:]) / 2).sum(1)
    return _divide(won, positives.sum(1) * wins[:, -1])


def _below_cut(x: Floats, chosen: Floats, weights: Floats) -> Floats:
    """Weight of the chosen rows below each cut between scores; (resamples, scores + 1)."""
    _, score = np.unique(x, return_inverse=True)
    sums = np.cumsum(_sum_by(score, weights * chosen), axis=1)
    return np.pad(sums, ((0, 0), (1, 0)))


def _correct(x: Floats, right: Floats, weights: Floats) -> Floats:
    """Weight sorted as labelled when scores above a cut are right; (resamples, scores + 1)."""
    wrong_below, right_below = (_below_cut(x, chosen, weights) for chosen in (1 - right, right))
    return wrong_below + right_below[:, -1:] - right_below


def _choose(correct: Floats, total: Floats) -> tuple[Integers, NDArray[np.bool_]]:
    """The best cut of each resample, and whether scores above it are right."""
    upwards = correct.max(1) >= (total[:, None] - correct).max(1)
    correct = np.where(upwards[:, None], correct, total[:, None] - correct)
    best = correct == correct.max(1, keepdims=True)
    first = best.argmax(1)
    # The middle of the (first) run of equally good cuts, as far as can be from either side.
    after = ~best & (np.arange(best.shape[1]) > first[:, None])
    end = np.where(after.any(1), after.argmax(1), best.shape[1])
    return (first + end - 1) // 2, upwards


def cross_fitted_accuracy(
    x: Floats, right: Floats, half: NDArray[np.bool_], weights: Floats
) -> Floats:
    """Share of the weighted rows sorted right by a threshold chosen on the other half.

    Args:
        x: scores; (rows,).
        right: 1 for right rows, 0 for wrong ones; (rows,).
        half: which half each row is in; (rows,).
        weights: whole numbers; (resamples, rows).

    Returns:
        The accuracy of each resample.
    """
    parts = [weights * ~half, weights * half]
    correct = [_correct(x, right, part) for part in parts]
    totals = [part.sum(1) for part in parts]
    rows = np.arange(len(weights))
    hits = np.zeros(len(weights))
    for chosen_on, scored_on in ((0, 1), (1, 0)):
        cut, upwards = _choose(correct[chosen_on], totals[chosen_on])
        found = correct[scored_on][rows, cut]
        hits += np.where(upwards, found, totals[scored_on] - found)
    return hits / (totals[0] + totals[1])


def best_threshold(x: Floats, right: Floats) -> str:
    """The threshold that sorts most rows right.

    Args:
        x: scores; (rows,).
        right: 1 for right rows, 0 for wrong ones; (rows,).

    Returns:
        Which scores are right: ">= 0.4", "< 0.4", or "always" or "never" where no threshold does
        better than that.
    """
    weights = np.ones((1, len(x)))
    (cut,), (upwards,) = _choose(_correct(x, right, weights), weights.sum(1))
    values = np.unique(x)
    if cut in (0, len(values)):
        return "always" if (cut == 0) == upwards else "never"
    return f"{'>=' if upwards else '<'} {_short_between(values[cut - 1], values[cut])}"


def _short_between(low: float, high: float) -> str:
    """The middle with as few digits as still lie above the low and not above the high one."""
    texts = (f"{(low + high) / 2:.{digits}g}" for digits in range(2, 18))
    return next((text for text in texts if low < float(text) <= high), repr(float(high)))


def _divide(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
