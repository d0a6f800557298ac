"""Statistics of accuracies: arrays in, arrays out."""

from __future__ import annotations

from scipy.stats import binomtest


def wilson_interval(correct: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion, as fractions in [0, 1]."""
    interval = binomtest(correct, total).proportion_ci(confidence_level=level, method="wilson")
    return float(interval.low), float(interval.high)
