"""Statistics of running times: arrays in, numbers out.

Times are skewed to the right, and a busy machine makes some of them far too long, so everything here is a median or
another order statistic. Two networks are compared by the ratio of their times within each round, in which both ran
shortly after one another: what slows a whole round down cancels. The interval of a median of ratios makes no assumption
about their distribution, only that rounds are independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from tokenmerge_bench.statistics import Interval

Times = Sequence[float] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class Quartiles:
    """The median of a sample and the quarters around it, in the unit of the sample."""

    q25: float
    median: float
    q75: float


def quartiles(times: Times) -> Quartiles:
    """Median and interquartile range, interpolated linearly between neighbours.

    Raises:
        ValueError: for an empty sample.
    """
    if len(times) == 0:
        raise ValueError("an empty sample has no median")
    low, middle, high = np.quantile(np.asarray(times, dtype=np.float64), (0.25, 0.5, 0.75))
    return Quartiles(float(low), float(middle), float(high))


def median_interval(values: Times, level: float = 0.95) -> Interval:
    """The median and a distribution-free interval of it, between two order statistics (the sign test's).

    The i-th smallest value lies above the true median with the probability that a fair coin falls heads up fewer than i
    times, so the interval covers at least `level`. Fewer than 6 values cannot give 95 %: the interval then runs from
    the smallest to the largest, which covers 1 - 2^(1 - n).

    Raises:
        ValueError: for an empty sample.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = len(ordered)
    middle = quartiles(ordered).median
    missed = np.searchsorted(binom.cdf(np.arange(n), n, 0.5), (1 - level) / 2, side="right")
    below = max(int(missed) - 1, 0)  # i - 1 for the largest i whose end misses the median in at most half of the cases
    return Interval(middle, float(ordered[below]), float(ordered[n - 1 - below]))


def paired_ratio(reference: Times, times: Times, level: float = 0.95) -> Interval:
    """How many times as fast as a reference: the median over rounds of reference time / time, with its interval.

    Args:
        reference: a time for each round.
        times: of the same rounds, in the same order.
        level: of confidence.

    Raises:
        ValueError: if the rounds are not the same number.
    """
    a, b = np.asarray(reference, dtype=np.float64), np.asarray(times, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"ratios need the same rounds, not {len(a)} and {len(b)}")
    return median_interval(a / b, level)
