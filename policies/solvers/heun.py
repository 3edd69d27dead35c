"""Heun's second-order method (for diffusion: Karras et al. 2022, arXiv 2206.00364)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..pred import Pred
from .solver import Move, clipped

if TYPE_CHECKING:
    from ..field import Field


@dataclass(frozen=True)
class Heun:
    """The mean of the velocities here and at the far end of an Euler step: two evaluations a step, but one at
    the last, where there is no noise left to speak of."""

    clip: float = 0.0
    """Bound of the clean chunk's elements at every evaluation, normalised; 0: none."""

    def step(self, field: Field, a: Tensor, i: int, state: Any) -> Move:
        # every Gaussian path is the straight one, scaled: a / (alpha + sigma) moves with x - eps over tau
        level, after = field.path[i], field.path[i + 1]
        here, there = level.alpha + level.sigma, after.alpha + after.sigma
        if not here:
            raise ValueError("Heun solves from noise to data: this objective is deterministic, use DDIM")
        span = after.tau - level.tau
        velocity = self._velocity(field(a, i))
        end = (a / here + span * velocity) * there
        if not after.sigma:
            return Move(end)
        mean = 0.5 * (velocity + self._velocity(field(end, i + 1)))
        return Move((a / here + span * mean) * there)

    def _velocity(self, pred: Pred) -> Tensor:
        x, eps = clipped(pred.a, pred.x, pred.eps, float(pred.alpha), float(pred.sigma), self.clip)
        return x - eps
