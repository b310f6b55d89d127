"""How far a score may be trusted: intervals and paired comparisons by resampling samples."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
SEED = 12345
BOOTSTRAP_SIGNATURE = f"resamples:{RESAMPLES}|seed:{SEED}|level:95|interval:percentile"

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Statistic:
    """What each sample adds to one score of a corpus.

    Scores of a corpus are no means of scores of samples, but the counts behind them (errors and
    reference words, matching n-grams, ...) add up, and the score follows from their sums.

    Attributes:
        counts: a row a sample, ``(samples, counts)``.
        value: the scores that belong to rows of sums, ``(rows, counts)`` to ``(rows,)``; NaN where
            there is none.
    """

    counts: Floats
    value: Callable[[Floats], Floats]

    def sums(self) -> list[float]:
        """The sums over all samples, the same in any order of samples."""
        return [math.fsum(column) for column in self.counts.T]

    def score(self) -> float | None:
        """The score of all samples together; None where it is undefined."""
        value = float(self.value(np.array([self.sums()]))[0])
        return None if math.isnan(value) else value

    def each(self) -> list[float]:
        """The score of each sample by itself."""
        return self.value(self.counts).tolist()

    def take(self, indices: Sequence[int]) -> "Statistic":
        """The statistic of some of the samples."""
        return Statistic(self.counts[list(indices)], self.value)

    def only(self, counted: Sequence[bool]) -> "Statistic":
        """The statistic of as many samples, of which some count nothing."""
        return Statistic(self.counts * np.array(counted)[:, None], self.value)


def mean(values: Sequence[float], counted: Sequence[bool] | None = None) -> Statistic:
    """A score that is a mean over samples.

    Args:
        values: of each sample.
        counted: whether each counts; None for all. NaN is the mean of none.

    Returns:
        The statistic.
    """
    weights = np.ones(len(values)) if counted is None else np.array(counted, dtype=float)
    counts = np.stack([np.array(values, dtype=float) * weights, weights], axis=1)
    return Statistic(counts, _quotient)


def _quotient(sums: Floats) -> Floats:
    return np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0)


def bootstrap_intervals(
    statistics: Mapping[str, Statistic], resamples: int = RESAMPLES
) -> dict[str, list[float]]:
    """95 % intervals of scores of the same samples.

    Samples are drawn with replacement, as many as there are, a thousand times; the interval goes
    from the 2.5th to the 97.5th percentile of the thousand scores. Draws start from a fixed seed
    and do not depend on the order of samples. Below some thirty samples intervals are too narrow.

    Args:
        statistics: score to its statistic.
        resamples: number of draws.

    Returns:
        Score to [low, high]. A score that is undefined has no interval, and one of a single sample
        has none either: its draws would all be the same.

    Source: Efron, Bootstrap methods: another look at the jackknife,
        https://doi.org/10.1214/aos/1176344552

    Example:
        >>> bootstrap_intervals({"accuracy": mean([1, 0] * 200)})
        {'accuracy': [0.4475, 0.547562]}
    """
    if any(len(statistic.counts) < 2 for statistic in statistics.values()):
        return {}
    draws = zip(statistics, _resampled(list(statistics.values()), resamples), strict=True)
    return {name: _percentiles(scores) for name, scores in draws if not np.isnan(scores).all()}


@dataclass(frozen=True, slots=True)
class Difference:
    """Two systems compared by one score.

    Attributes:
        a: score of the first system.
        b: score of the second.
        difference: ``b - a``.
        interval: 95 % interval of the difference, [low, high].
        p_value: probability, at most, of a difference as clear as this between systems that are
            equally good, in either direction.
    """

    a: float
    b: float
    difference: float
    interval: list[float]
    p_value: float


def paired_differences(
    a: Mapping[str, Statistic], b: Mapping[str, Statistic], resamples: int = RESAMPLES
) -> dict[str, Difference]:
    """Compare two systems on the same samples by paired bootstrap resampling.

    Both systems are scored on the same draws of samples: what makes a sample hard for both cancels.
    The p-value is twice the share of draws in which the system that is worse on all samples is no
    worse (counting one more draw than there are, so that it is never 0; at most 1). But it is never
    below ``2 / 2**k`` for the k samples on which the systems differ, the best that swapping their
    outputs could show: draws of five samples out of five may all say the same, and prove little.
    With more samples it is below 0.05 when the interval leaves out 0.

    Args:
        a: score to statistic of the first system.
        b: the same scores of the second, its samples in the same order.
        resamples: number of draws.

    Returns:
        Score to difference; scores that either system lacks are left out.

    Source: https://aclanthology.org/W04-3250
    """
    pairs = {name: (a[name], b[name]) for name in a if name in b}
    draws = _resampled([statistic for pair in pairs.values() for statistic in pair], resamples)
    result = {}
    for (name, pair), drawn_a, drawn_b in zip(pairs.items(), draws[::2], draws[1::2], strict=True):
        score_a, score_b = pair[0].score(), pair[1].score()
        differences = drawn_b - drawn_a
        differences = differences[~np.isnan(differences)]
        if score_a is None or score_b is None or not len(differences):
            continue
        differences[np.abs(differences) < 1e-9] = 0.0  # rounding errors are no difference
        reversals = min((differences <= 0).sum(), (differences >= 0).sum())
        differing = (pair[0].counts != pair[1].counts).any(axis=1).sum()
        p_value = max(2 * (reversals + 1) / (len(differences) + 1), 2.0 ** (1 - differing))
        result[name] = Difference(
            score_a, score_b, score_b - score_a, _percentiles(differences), min(1.0, float(p_value))
        )
    return result


def _resampled(statistics: list[Statistic], resamples: int) -> list[Floats]:
    """The scores of each statistic on the same draws of samples."""
    if not statistics:
        return []
    table = np.hstack([statistic.counts for statistic in statistics])
    table = table[np.lexsort(table.T)]  # the same draws in whatever order the samples came
    sums = _sums_of_draws(table, resamples)
    ends = np.cumsum([statistic.counts.shape[1] for statistic in statistics])[:-1]
    parts = np.split(sums, ends, axis=1)
    return [statistic.value(part) for statistic, part in zip(statistics, parts, strict=True)]


def _sums_of_draws(table: Floats, resamples: int) -> Floats:
    """Column sums of rows drawn with replacement, ``(resamples, columns)``.

    How often each row is drawn, times the table, is the same as adding up the rows drawn, and a
    product of matrices is fast.
    """
    size = len(table)
    generator = np.random.default_rng(SEED)
    at_once = max(1, 2_000_000 // size)  # bounds the memory
    sums = []
    for start in range(0, resamples, at_once):
        draws = min(at_once, resamples - start)
        chosen = generator.integers(size, size=(draws, size))
        chosen += np.arange(draws)[:, None] * size
        times = np.bincount(chosen.ravel(), minlength=draws * size).reshape(draws, size)
        sums.append(times.astype(float) @ table)
    return np.concatenate(sums)


def _percentiles(scores: Floats) -> list[float]:
    return np.nanpercentile(scores, [2.5, 97.5]).round(6).tolist()
