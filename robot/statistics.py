"""Intervals for evidence: Wilson for rates, the bootstrap for means of grouped data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % score interval (low, high) of a rate (Wilson 1927); (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    # as `scipy.stats.binomtest` gives it, whose import takes as long as a short evaluation
    z, p = NormalDist().inv_cdf(0.975), successes / trials
    middle = p + z * z / (2 * trials)
    half = z * math.sqrt(p * (1 - p) / trials + (z / (2 * trials)) ** 2)
    low, high = ((middle + sign * half) / (1 + z * z / trials) for sign in (-1, 1))
    return (low if successes else 0.0), (high if successes < trials else 1.0)


def rate_interval(successes: Sequence[int], episodes: int) -> tuple[float, float]:
    """95 % interval (low, high) of the success of a method that was trained several times, from the successes
    of each training in `episodes` episodes: Wilson's over all episodes, or Student's of the trainings' rates,
    within 0 and 1, where that is wider. Episodes of one training share its luck, so that counting them one by
    one makes too narrow an interval, however many there are."""
    low, high = wilson(sum(successes), len(successes) * episodes)
    if len(successes) < 2:
        return low, high
    from scipy.stats import t

    rates = np.array(successes) / episodes
    half = float(t.ppf(0.975, len(rates) - 1) * rates.std(ddof=1) / math.sqrt(len(rates)))
    mean = float(rates.mean())
    return max(0.0, min(low, mean - half)), min(1.0, max(high, mean + half))


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


def paired_difference(
    a_SE: np.ndarray, b_SE: np.ndarray, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """(mean, low, high) of a - b with its 95 % interval, for two methods with the same S training seeds and E
    episodes. Seeds and episodes are both resampled (Owen 2007, the pigeonhole bootstrap, percentiles), since
    the episodes of one policy share its luck, and the policies share the episodes."""
    difference = np.asarray(a_SE, np.float64) - np.asarray(b_SE, np.float64)
    n_seeds, n_episodes = difference.shape
    rng = np.random.default_rng(seed)
    by_seed = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), resamples)
    by_episode = rng.multinomial(n_episodes, np.full(n_episodes, 1 / n_episodes), resamples)
    means = ((by_seed @ difference) * by_episode).sum(1) / difference.size
    low, high = np.percentile(means, [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)
