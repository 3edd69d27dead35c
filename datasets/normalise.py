"""Normalisation. Every mode is affine, so a normaliser is two arrays: `x_norm = x·scale + offset`. What
enters a network through one is clipped softly besides."""

from __future__ import annotations

from typing import Literal

import numpy as np

from .stats import Stats

Mode = Literal["minmax", "meanstd", "quantile", "none"]
DEGENERATE = 1e-4  # where the statistics know no resolution
STILL = 4  # resolutions: an encoder at rest wavers between neighbouring counts
RARE = 50.0  # a quantile range this many times under the whole range is too narrow to scale by
CLIP, CLIP_OLD = 10.0, 1e6  # from here on inputs are clipped softly; the latter without a resolution


def affine(stats: Stats, mode: Mode, target: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(scale, offset), each float32 of the feature's shape.

    minmax: the range to [-1, 1]; quantile: the 1 % to 99 % range to [-1, 1]; meanstd: mean 0, deviation 1. An
    element that stands `still` is only shifted: scaling it would amplify an encoder's noise. target: of
    actions, which a network is to hit: such an element is scaled as if it moved by its resolution, so that
    the network's error stays as small. Where the quantiles stand still and the whole range does not (a
    gripper that opens in every two hundredth row), the whole range is scaled by."""
    if mode == "none":
        return np.ones_like(stats.mean, np.float32), np.zeros_like(stats.mean, np.float32)
    centre, half = _spread(stats, mode)
    if target and stats.resolution is not None:  # continuous in the range, and never above [-1, 1]
        scale = 1.0 / np.maximum(half, stats.resolution / 2)
    else:
        moves = ~still(stats, mode)
        scale = np.where(moves, 1.0 / np.where(moves, half, 1.0), 1.0)
    return scale.astype(np.float32), (-centre * scale).astype(np.float32)


def still(stats: Stats, mode: Mode) -> np.ndarray:
    """Which elements `(D,)` bool move so little that it means nothing: their range (of meanstd: twice the
    deviation) is under four times the resolution."""
    _, half = _spread(stats, mode)
    if stats.resolution is None:
        return (half if mode == "meanstd" else 2 * half) < DEGENERATE
    return 2 * half < STILL * stats.resolution


def clip(stats: Stats) -> float:
    """Beyond which normalised number an input is clipped."""
    return CLIP_OLD if stats.resolution is None else CLIP


def _spread(stats: Stats, mode: Mode) -> tuple[np.ndarray, np.ndarray]:
    """(centre, half the range or the deviation), which become 0 and 1."""
    if mode == "meanstd":
        return stats.mean, stats.std
    whole = (stats.max - stats.min) / 2
    if mode == "minmax":
        return (stats.min + stats.max) / 2, whole
    centre, half = (stats.q01 + stats.q99) / 2, (stats.q99 - stats.q01) / 2
    if stats.resolution is None:
        return centre, half
    rests = 2 * half < STILL * stats.resolution
    return (
        np.where(rests, (stats.min + stats.max) / 2, centre),
        np.where(rests, whole, np.maximum(half, whole / RARE)),
    )
