"""Intervals for evidence: Wilson for rates, the bootstrap for means of grouped data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % score interval (low, high) of a rate (Wilson 1927); (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_mean(
    groups: Sequence[np.ndarray], resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """(mean, low, high) of all values with its 95 % interval, resampling whole groups with replacement.

    A group holds values that are not independent of each other (a block of neighbouring ticks), so the
    interval is not made too narrow by counting them one by one (percentile bootstrap over blocks). A single
    group tells nothing of how groups differ: its mean is then low and high, too."""
    from scipy.stats import bootstrap

    sums, counts = np.array([g.sum() for g in groups]), np.array([g.size for g in groups])
    mean = float(sums.sum() / counts.sum())
    if len(groups) == 1:
        return mean, mean, mean

    def ratio(sums: np.ndarray, counts: np.ndarray, axis: int) -> np.ndarray:
        return sums.sum(axis) / counts.sum(axis)

    rng = np.random.default_rng(seed)
    result = bootstrap(
        (sums, counts),
        ratio,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=resamples,
        rng=rng,
    )
    low, high = result.confidence_interval
    return mean, float(low), float(high)


def bootstrap_crossed(
    values_SE: np.ndarray, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """(mean, low, high) of the values of S trainings on the same E episodes, with its 95 % interval,
    resampling trainings and episodes both: another training seed and other episodes might have come (two-way
    percentile bootstrap, Owen and Eckles 2012, arXiv:1106.2125). Of one training only the episodes vary."""
    s, e = values_SE.shape
    rng = np.random.default_rng(seed)
    row_weights = rng.multinomial(s, np.full(s, 1 / s), resamples) / s
    column_weights = rng.multinomial(e, np.full(e, 1 / e), resamples) / e
    means = np.einsum("rs,se,re->r", row_weights, values_SE.astype(np.float64), column_weights, optimize=True)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values_SE.mean()), float(low), float(high)
