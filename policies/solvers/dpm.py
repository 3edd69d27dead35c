"""DPM-Solver++ in its multistep form of second order (Lu et al. 2022, arXiv 2211.01095)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .solver import Move

if TYPE_CHECKING:
    from ..field import Field


@dataclass(frozen=True)
class DPM:
    """DPM-Solver++(2M): one evaluation a step, which goes on from the last one's; of first order at the two
    ends, where the log of the signal-to-noise ratio is infinite."""

    clip: float = 0.0
    """Bound of the clean chunk's elements at every step, normalised; 0: none."""

    def step(self, field: Field, a: Tensor, i: int, state: Any) -> Move:
        """state: (the last step's x, its span of the log-ratio)."""
        level, after = field.path[i], field.path[i + 1]
        if not level.sigma:
            raise ValueError("DPM solves from noise to data: this objective is deterministic, use DDIM")
        x = field(a, i).x
        x = x.clamp(-self.clip, self.clip) if self.clip else x
        span = _log_ratio(after.alpha, after.sigma) - _log_ratio(level.alpha, level.sigma)
        ahead = x
        if state is not None and math.isfinite(span) and math.isfinite(state[1]):
            before, last_span = state
            ahead = torch.lerp(before, x, 1 + span / (2 * last_span))
        ratio = after.sigma / level.sigma
        signal = after.alpha - ratio * level.alpha  # alpha'·(1 - e^-span), finite at both ends
        return Move(ratio * a + signal * ahead, state=(x, span))


def _log_ratio(alpha: float, sigma: float) -> float:
    if not sigma:
        return math.inf
    return math.log(alpha / sigma) if alpha else -math.inf
