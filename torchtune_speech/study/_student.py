"""Mean and confidence interval of a few runs, by Student's t."""

import math
from collections.abc import Sequence

CONFIDENCE = 0.95


def mean_interval(
    values: Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float, tuple[float, float] | None]:
    """Mean of independent runs, and an interval that holds the mean of many such runs.

    The interval is `mean +- t * s / sqrt(n)`, with `s` the standard deviation of the sample and `t`
    from Student's distribution with n - 1 degrees of freedom: it takes the runs for draws from a
    normal distribution. https://www.itl.nist.gov/div898/handbook/eda/section3/eda352.htm

    Args:
        values: one number a run; at least one.
        confidence: share of such intervals that hold the mean. Default 0.95.

    Returns:
        The mean, and the interval's ends; None with one run, which says nothing of its spread.

    Example:
        >>> mean_interval([1.0, 2.0, 3.0])
        (2.0, (-0.484..., 4.484...))
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return mean, None
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = student_t_quantile((1 + confidence) / 2, n - 1) * deviation / math.sqrt(n)
    return mean, (mean - half, mean + half)


def student_t_quantile(p: float, degrees: int) -> float:
    """The value that Student's t stays below with probability `p`.

    Args:
        p: from 0.5 to below 1.
        degrees: degrees of freedom, at least 1.

    Returns:
        The value, to twelve digits or so.
    """
    low, high = 0.0, 1.0
    while _central(high, degrees) < 2 * p - 1:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        if _central(middle, degrees) < 2 * p - 1:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _central(t: float, degrees: int) -> float:
    """P(-t < T < t): a finite sum, Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    theta = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = degrees % 2
    # Odd: cos + 2/3 cos^3 + 2*4/(3*5) cos^5 + ...; even: 1 + 1/2 cos^2 + 1*3/(2*4) cos^4 + ...
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(2 + odd, degrees + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    return 2 / math.pi * (theta + sine * total) if odd else sine * total
