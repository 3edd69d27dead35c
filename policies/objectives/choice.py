"""Choosing one of several by the sampler's noise, so that a seed says which. Legend: B batch, C choices."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST = 1e-12  # of a cumulative share, so that what has the share 0 is never chosen


def uniforms(noise_BHA: Tensor, n: int = 1) -> Tensor:
    """`(B, n)`, independent and even between 0 and 1, from standard normal noise of at least n elements."""
    parts = noise_BHA.flatten(1).float().tensor_split(n, dim=1)
    # a sum is normal, too, whatever the size of the chunk
    normal = torch.stack([p.sum(1) / math.sqrt(p.shape[1]) for p in parts], dim=1)
    return torch.special.ndtr(normal).clamp(LEAST, 1 - 1e-6)


def choice(shares_BC: Tensor, u_B: Tensor) -> Tensor:
    """`(B,)` int: which, by its share, at u between 0 and 1. The shares of a row need not sum to 1."""
    cumulative = shares_BC.cumsum(1)
    chosen = (cumulative < u_B[:, None] * cumulative[:, -1:]).sum(1)
    return chosen.clamp(max=shares_BC.shape[1] - 1)
