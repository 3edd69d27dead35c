"""Descent on a learned energy, each row for as long as it needs (EBT-Policy, arXiv 2510.27545). Legend: B
batch (times candidates), b rows of it that still move, H horizon, A action dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .solver import Move

if TYPE_CHECKING:
    from ..field import Field


@dataclass(frozen=True)
class EnergyDescent:
    """Gradient descent with Nesterov's momentum; a row whose gradient is small takes this step and rests,
    unasked from then on, so that evaluations are spent where the choice is hard.

    The step that the gradient asks for is `x - a` of the prediction, so it goes with any objective whose x is
    where to go next. The path's number of levels is the most steps that a row may take. Source: EBT-Policy,
    whose stop is by the norm over the batch, which makes a row depend on its neighbours; here by each row's
    own."""

    momentum: float = 0.9
    """Share of the last step that is taken again, 0 to below 1; as in training."""
    rate: float = 1.0
    """Share of the step that the gradient asks for which is taken, above 0."""
    tolerance: float = 0.01
    """A row rests when that step's root mean square is at most this, normalised; 0: none rests."""

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1 or self.rate <= 0 or self.tolerance < 0:
            raise ValueError(
                "EnergyDescent's momentum lies in 0..1, below 1, its rate is positive and its tolerance is "
                "not negative"
            )

    def step(self, field: Field, a: Tensor, i: int, state: Any) -> Move:
        """state: (the last step `(B, H, A)`, which rows rest `(B,)` bool)."""
        last, resting = state or (torch.zeros_like(a), torch.zeros(len(a), dtype=torch.bool, device=a.device))
        rows = None if not bool(resting.any()) else (~resting).nonzero()[:, 0]
        here, carried = (a, last) if rows is None else (a[rows], last[rows])
        ahead = here + self.momentum * carried
        asked = field(ahead, i, rows=rows).x - ahead
        step = self.momentum * carried + self.rate * asked
        rests = asked.flatten(1).pow(2).mean(1).sqrt() <= self.tolerance if self.tolerance else None
        if rows is None:
            mean, last = a + step, step
            resting = resting if rests is None else rests
        else:
            mean, last = a.index_copy(0, rows, here + step), last.index_copy(0, rows, step)
            resting = resting if rests is None else resting.index_copy(0, rows, rests)
        return Move(mean, state=(last, resting), rest=resting)
