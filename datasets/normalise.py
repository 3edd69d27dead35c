"""Normalisation. Every mode is affine, so a normaliser is two arrays: `x_norm = x·scale + offset`."""

from __future__ import annotations

from typing import Literal

import numpy as np

from .stats import Stats

DEGENERATE = 1e-4


def affine(
    stats: Stats, mode: Literal["minmax", "meanstd", "quantile", "none"]
) -> tuple[np.ndarray, np.ndarray]:
    """(scale, offset), each float32 of the feature's shape.

    minmax: the range to [-1, 1]; quantile: the 1 % to 99 % range to [-1, 1]; meanstd: mean 0, deviation 1. A
    dimension whose range (or deviation) is under 1e-4 is only shifted: scaling it would amplify sensor noise.
    """
    if mode == "none":
        return np.ones_like(stats.mean, np.float32), np.zeros_like(stats.mean, np.float32)
    if mode == "meanstd":
        centre, half = stats.mean, stats.std
        wide = half >= DEGENERATE
    else:
        low, high = (stats.min, stats.max) if mode == "minmax" else (stats.q01, stats.q99)
        centre, half = (low + high) / 2, (high - low) / 2
        wide = high - low >= DEGENERATE
    scale = np.where(wide, 1.0 / np.where(wide, half, 1.0), 1.0)
    return scale.astype(np.float32), (-centre * scale).astype(np.float32)
