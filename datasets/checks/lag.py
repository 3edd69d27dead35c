"""The lag of a camera: how long after the joints its images move.

The change of the image is compared with the motion of each joint in the same time, at every lag from -0.5 to
0.5 s. It is not known how much a joint shows in the image, so each joint has a weight ≥ 0, fitted at each lag
over all episodes at once. The camera's lag is the one at which the fit correlates best with the images. Only
sums are kept of an episode, so memory stays small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .findings import Stream
from .frames import Scan

LAGS_S = np.arange(-25, 26) * 0.02
FEW = 12  # intervals; fewer are not enough
GROUPS = 10  # of episodes; each is left out once to estimate the error of the lag


@dataclass
class Pair:
    """Image and joints of one episode, to be compared: motion `(M, 3)` as in `Scan`; t_s `(T,)` and values
    `(T, D)` of the joints."""

    motion: np.ndarray
    t_s: np.ndarray
    values: np.ndarray


@dataclass
class Sums:
    """At each of L lags: joints, the covariance of the joints' motion `(L, D, D)`; both, that of joints and
    image `(L, D)`. image: the variance of the image's change. seconds: the time that the images span."""

    joints: np.ndarray
    both: np.ndarray
    image: float
    seconds: float


@dataclass(frozen=True)
class Lag:
    """lag_s: the images move that long after the joints (negative: before them). correlation: at that lag;
    edge: how much it exceeds the best correlation 0.2 s away. error_s: the standard error of lag_s
    (jackknife: how much it changes when episodes are left out)."""

    lag_s: float
    correlation: float
    edge: float
    error_s: float
    weights: np.ndarray  # (L, D)


def pair(scan: Scan, joints: Stream) -> Pair | None:
    """The motion of a camera and the joints; None where there is too little to compare."""
    if joints.values is None or len(scan.motion) < FEW or not np.isfinite(joints.values).all():
        return None
    t, order = np.unique(joints.t_s, return_index=True)
    return Pair(scan.motion, t, joints.values[order].astype(np.float32)) if len(t) > 1 else None


def sums(p: Pair) -> Sums:
    start, end, change = p.motion.T
    inside = (start - LAGS_S[-1] >= p.t_s[0]) & (end - LAGS_S[0] <= p.t_s[-1])
    # in a short episode all intervals are used, as if the joints stood still before and after it
    if inside.mean() > 0.6:
        start, end, change = start[inside], end[inside], change[inside]
    change = change - change.mean()
    n, d = len(LAGS_S), p.values.shape[1]
    result = Sums(np.empty((n, d, d)), np.empty((n, d)), float(change @ change), float(np.ptp(end)))
    for i, lag in enumerate(LAGS_S):
        travel = np.abs(_at(p.t_s, p.values, end - lag) - _at(p.t_s, p.values, start - lag))
        travel -= travel.mean(axis=0)
        result.joints[i], result.both[i] = travel.T @ travel, travel.T @ change
    return result


def pooled_lag(pairs: Sequence[Pair]) -> Lag | None:
    """The lag of a camera over its episodes; None where joints or images hardly move."""
    groups: list[Sums] = []
    for i, one in enumerate(map(sums, pairs)):
        if i < GROUPS:
            groups.append(one)
        else:
            groups[i % GROUPS] = _sum([groups[i % GROUPS], one])
    fit = _fit(_sum(groups)) if groups else None
    if fit is None:
        return None
    curve, weights = fit
    fits = [_fit(_sum(groups[:i] + groups[i + 1 :])) for i in range(len(groups))] if len(groups) > 1 else []
    others = np.array([_peak(other[0]) for other in fits if other is not None])
    n = len(others)
    error = float(np.sqrt((n - 1) / n * np.sum((others - others.mean()) ** 2))) if n > 1 else np.inf
    return Lag(_peak(curve), float(curve.max()), _edge(curve), error, weights)


def _sum(parts: Sequence[Sums]) -> Sums:
    return Sums(
        np.sum([p.joints for p in parts], axis=0),
        np.sum([p.both for p in parts], axis=0),
        sum(p.image for p in parts),
        sum(p.seconds for p in parts),
    )


def episode_lag(part: Sums, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """(lag_s, correlations `(L,)`) of one episode with the weights `(L, D)` of all of them."""
    top = np.einsum("ld,ld->l", weights, part.both)
    bottom = np.sqrt(np.einsum("ld,lde,le->l", weights, part.joints, weights) * part.image)
    curve = np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1), 0.0)
    return _peak(curve), curve


def _fit(part: Sums) -> tuple[np.ndarray, np.ndarray] | None:
    """(correlations `(L,)`, weights `(L, D)`)."""
    from scipy.optimize import nnls

    joints, both, image = part.joints, part.both, part.image
    scale = np.sqrt(np.mean([np.diag(g) for g in joints], axis=0))
    moving = scale > 1e-3 * scale.max(initial=0)
    if image <= 0 or not moving.any():
        return None
    s = scale[moving]
    curve, weights = np.zeros(len(LAGS_S)), np.zeros(both.shape)
    for i in range(len(LAGS_S)):
        gram = joints[i][np.ix_(moving, moving)] / np.outer(s, s)
        lower = np.linalg.cholesky(gram + 1e-3 * np.eye(len(s)))
        right = both[i][moving] / s
        w, _ = nnls(lower.T, np.linalg.solve(lower, right))
        bottom = np.sqrt((w @ gram @ w) * image)
        curve[i] = w @ right / bottom if bottom > 0 else 0.0
        weights[i, moving] = w / s
    return curve, weights


def _peak(curve: np.ndarray) -> float:
    """The lag in s at which `curve` `(L,)` is highest, refined between the lags by a parabola."""
    i = int(np.argmax(curve))
    if not 0 < i < len(curve) - 1:
        return float(LAGS_S[i])
    left, top, right = curve[i - 1 : i + 2]
    bend = left - 2 * top + right
    return float(LAGS_S[i] + (0.5 * (left - right) / bend * (LAGS_S[1] - LAGS_S[0]) if bend < 0 else 0.0))


def _edge(curve: np.ndarray) -> float:
    away = np.abs(LAGS_S - LAGS_S[int(np.argmax(curve))]) >= 0.2
    return float(curve.max() - curve[away].max())


def _at(t: np.ndarray, values: np.ndarray, when: np.ndarray) -> np.ndarray:
    """`values` `(T, D)` interpolated linearly at `when` `(N,)`; the first and last row beyond the ends."""
    if len(t) < 2:
        return np.repeat(values[:1], len(when), axis=0)
    after = np.clip(np.searchsorted(t, when), 1, len(t) - 1)
    share = np.clip((when - t[after - 1]) / (t[after] - t[after - 1]), 0, 1)[:, None]
    return values[after - 1] * (1 - share) + values[after] * share
