"""The normal numbers that torch's CPU generator draws, without torch, so that an exported policy gives the
same chunk for the same seed.

A Mersenne twister, and Box and Muller's transform: of 16 numbers at a time where there are at least 16, else
one pair after the other in double precision. As torch 2.11's `normal_` was seen to draw them (its
DistributionTemplates.h); a test compares the two."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

BLOCK = 16


def sampler_noise(seed: int, draws: int, shape: Sequence[int]) -> np.ndarray:
    """What `policies.sampler.Noise([seed], ...)` gives for one row: `(draws, 1, *shape)` float32."""
    digest = hashlib.sha256(f"{seed} sampler".encode()).digest()
    normal = Normal(int.from_bytes(digest[:7], "big"))
    return np.stack([normal.draw(math.prod(shape)).reshape(1, *shape) for _ in range(draws)])


class Normal:
    """`torch.Generator().manual_seed(seed)`, from which only `torch.randn` draws."""

    def __init__(self, seed: int) -> None:
        self._twister = np.random.MT19937()
        self._twister._legacy_seeding(seed & 0xFFFFFFFF)  # type: ignore[attr-defined]
        self._second: float | None = None  # of the last pair

    def draw(self, n: int) -> np.ndarray:
        """`torch.randn(n)`, float32."""
        if n < BLOCK:
            return np.array([self._one() for _ in range(n)], np.float32)
        values = self._uniform(n)
        whole = n - n % BLOCK
        values[:whole] = _transformed(values[:whole])
        if n % BLOCK:  # the last block is drawn anew, over the end of the one before
            values[-BLOCK:] = _transformed(self._uniform(BLOCK))
        return values

    def _uniform(self, n: int) -> np.ndarray:
        raw = self._twister.random_raw(n).astype(np.uint32)
        return (raw & np.uint32((1 << 24) - 1)).astype(np.float32) * np.float32(2.0**-24)

    def _one(self) -> float:
        if self._second is not None:
            value, self._second = self._second, None
            return value
        u1, u2 = self._double(), self._double()
        radius = math.sqrt(-2 * math.log1p(-u2))
        self._second = radius * math.sin(2 * math.pi * u1)
        return radius * math.cos(2 * math.pi * u1)

    def _double(self) -> float:
        high, low = (int(v) for v in self._twister.random_raw(2))
        return ((high << 32 | low) & ((1 << 53) - 1)) * 2.0**-53


def _transformed(uniform: np.ndarray) -> np.ndarray:
    """In blocks of 16, the first eight radii and the others angles."""
    u = uniform.reshape(-1, 2, BLOCK // 2)
    radius = np.sqrt(-2 * np.log(1 - u[:, 0]))
    angle = np.float32(2 * math.pi) * u[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1).astype(np.float32)
