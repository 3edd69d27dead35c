"""How a backbone is told the time. Two times (s, t) for flow maps; everything else calls with s = t."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """tau in [0, 1] `(B,)` to `(B, width)`: sinusoids with periods from 4e-3 to 4 (pi0's range), then an MLP.

    With `two_times` the span t - s enters through a second, zero-initialised projection, so that a one-time
    network and a two-time one start out equal. Its sinusoids are slow, with periods from 1 to 4: flow maps
    learn from the derivative by s, and that of a fast one, 2 pi / 4e-3, drowns all else."""

    def __init__(self, width: int, two_times: bool = False) -> None:
        super().__init__()
        periods = torch.exp(torch.linspace(math.log(4e-3), math.log(4.0), width // 2))
        self.frequencies: Tensor
        self.register_buffer("frequencies", 2 * math.pi / periods, persistent=False)
        slow = torch.exp(torch.linspace(0.0, math.log(4.0), width // 2))
        self.slow: Tensor
        self.register_buffer("slow", 2 * math.pi / slow, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        self.span = nn.Linear(width, width, bias=False) if two_times else None
        if self.span is not None:
            nn.init.zeros_(self.span.weight)

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        out = self.mlp(_sinusoids(t, self.frequencies))
        if self.span is not None:
            out = out + self.span(_sinusoids(t - s, self.slow))
        return out


class LevelEmbedding(nn.Module):
    """tau `(B,)` to `(B, width)`: sinusoids of the number of the level that has this time on diffusers'
    squared-cosine schedule of so many levels, as Diffusion Policy (Chi et al. 2023) and LeRobot tell it, then
    an MLP."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.taus: Tensor
        self.register_buffer("taus", _taus(levels), persistent=False)
        half = width // 2
        frequencies = torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))
        self.frequencies: Tensor
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        number = (self.taus - t.float()[:, None]).abs().argmin(1)  # of the level nearest in time
        return self.mlp(_sinusoids(number, self.frequencies))


def _taus(levels: int) -> Tensor:
    """`(levels,)`, the cleanest first: alpha / (alpha + sigma)."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    schedule = DDIMScheduler(num_train_timesteps=levels, beta_schedule="squaredcos_cap_v2")
    alpha, sigma = schedule.alphas_cumprod.double().sqrt(), (1 - schedule.alphas_cumprod.double()).sqrt()
    return (alpha / (alpha + sigma)).float()


def _sinusoids(t_B: Tensor, frequencies: Tensor) -> Tensor:
    phase = t_B[:, None].to(frequencies.dtype) * frequencies
    return torch.cat([phase.sin(), phase.cos()], dim=-1)
