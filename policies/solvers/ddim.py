"""DDIM and everything between it and ancestral sampling (Song et al. 2021, arXiv 2010.02502)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .solver import Move, clipped

if TYPE_CHECKING:
    from ..field import Field


@dataclass(frozen=True)
class DDIM:
    """One evaluation a step. On the straight path of flow matching, eta 0 is Euler's method; on diffusion's,
    eta 1 with as many steps as in training is DDPM's ancestral sampler with its smaller variance."""

    eta: float = 0.0
    """Share of the fresh noise that ancestral sampling adds at a step, 0 (deterministic) to 1."""
    clip: float = 0.0
    """Bound of the clean chunk's elements at every step, normalised; 0: none."""

    noise: float = 1.0
    """Times the fresh noise of a step: less draws likelier chunks (see the hook `LowTemperature`)."""

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1 or self.clip < 0 or self.noise < 0:
            raise ValueError("DDIM's eta lies in 0..1, and its clip and noise are not negative")

    def step(self, field: Field, a: Tensor, i: int, state: Any) -> Move:
        level, after = field.path[i], field.path[i + 1]
        pred = field(a, i)
        if self.clip and not self.eta and level.sigma and a.is_cuda:
            # what follows, put together: a third of its kernels, which are what a decision takes on a GPU
            share = after.sigma / level.sigma
            x = pred.x.clamp(-self.clip, self.clip)
            return Move(torch.add(share * a, x, alpha=after.alpha - share * level.alpha))
        x, eps = clipped(a, pred.x, pred.eps, level.alpha, level.sigma, self.clip)
        if not self.eta or not after.sigma or not level.sigma:
            return Move(after.alpha * x + after.sigma * eps)
        # the variance of the cleaner chunk given this one and x, on any Gaussian path
        added = level.sigma**2 - (level.alpha / after.alpha) ** 2 * after.sigma**2 if after.alpha else 0.0
        std = self.eta * after.sigma / level.sigma * math.sqrt(max(added, 0.0))
        return Move(after.alpha * x + math.sqrt(max(after.sigma**2 - std**2, 0.0)) * eps, self.noise * std)
