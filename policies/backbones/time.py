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


def _sinusoids(t_B: Tensor, frequencies: Tensor) -> Tensor:
    phase = t_B[:, None].to(frequencies.dtype) * frequencies
    return torch.cat([phase.sin(), phase.cos()], dim=-1)
