"""Denoising with preconditioning (Karras et al. 2022, EDM, arXiv 2206.00364), as BESO has it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.backbone import Head, outputs
from ..contexts.context import Context
from ..pred import Pred
from .objective import Draw, Level, Losses, Path, compare, full


@dataclass(frozen=True)
class EDM:
    """Noise is added to the chunk, `a = x + sigma·eps`, and the network, whose input and output are scaled to
    deviation 1, gives a mixture of clean chunk and noise.

    log sigma is drawn from a logistic distribution, cut to the range; the levels of sampling are evenly
    spaced in it, then 0. The network is told tau = 1 / (1 + sigma), where BESO's is told log sigma / 4.
    Source: Karras et al. 2022; BESO (Reuss et al. 2023, arXiv 2304.02532)."""

    sigma_min: float = 0.005
    """Least noise, in training and at the last step but one of sampling."""
    sigma_max: float = 1.0
    """Most noise, where sampling begins."""
    sigma_data: float = 0.5
    """Deviation of normalised chunks."""
    middle: float = 0.5
    """Noise that is drawn most: the median of the distribution, before the cut."""
    spread: float = 0.5
    """Scale of the distribution of log sigma."""

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"EDM's sigma_min {self.sigma_min} must be positive and below its sigma_max {self.sigma_max}"
            )
        if min(self.sigma_data, self.middle, self.spread) <= 0:
            raise ValueError("EDM's sigma_data, middle and spread must be positive")

    @property
    def needs(self) -> Head:
        return Head()

    def path(self, steps: int) -> Path:
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        between = max(steps - 1, 1)
        sigma = [math.exp(high + (low - high) * i / between) for i in range(steps)]
        return Path.of([1.0] * (steps + 1), [*sigma, 0.0])

    def draw(self, a_BHA: Tensor, progress: float, rng: torch.Generator | None) -> Draw:
        u = torch.rand(len(a_BHA), device=a_BHA.device, generator=rng)
        noise = torch.randn(a_BHA.shape, dtype=a_BHA.dtype, device=a_BHA.device, generator=rng)
        low, high = (self._share_below(s) for s in (self.sigma_min, self.sigma_max))
        share = low + (high - low) * u
        sigma = torch.exp(math.log(self.middle) + self.spread * torch.logit(share))
        sigma = sigma.clamp(self.sigma_min, self.sigma_max)
        return Draw(noise, 1 / (1 + sigma), {"sigma": sigma})

    def losses(
        self, net: nn.Module, a_BHA: Tensor, context: Context, draw: Draw, teacher: Any = None
    ) -> Losses:
        sigma = draw.more["sigma"][:, None, None]
        noisy = a_BHA + sigma * draw.noise
        skip, out, scale = self._scales(sigma)
        target = (a_BHA - skip * noisy) / out
        if teacher is not None:
            target = teacher(scale * noisy, draw.tau, draw.tau, context).float()
        output = outputs(net, scale * noisy, draw.tau, draw.tau, context)
        return compare(output, lambda chunk: (chunk.float() - target) ** 2)

    def believe(self, net: nn.Module, a_BHA: Tensor, level: Level, context: Context) -> Pred:
        skip, out, scale = self._scales(torch.full((), level.sigma, dtype=a_BHA.dtype, device=a_BHA.device))
        tau = full(level.tau, a_BHA)
        x = skip * a_BHA + out * net(scale * a_BHA, tau, tau, context).float()
        return Pred.from_x(a_BHA, level.alpha, level.sigma, x)

    def _scales(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c_skip, c_out and c_in: the clean chunk is c_skip·a + c_out·net(c_in·a)."""
        both = sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / both, sigma * self.sigma_data / both.sqrt(), 1 / both.sqrt()

    def _share_below(self, sigma: float) -> float:
        """The logistic distribution's share below `sigma`."""
        return 1 / (1 + math.exp(-(math.log(sigma) - math.log(self.middle)) / self.spread))
