"""The contract of training objectives; each method has a file of its own beside this one.

An objective owns both its loss and the meaning of the network's output, so that training and sampling cannot
disagree: a path of levels from noise to data, a loss, what the network believes at one level (`Pred`), and
the step from one level to the next. Time is tau, 0 = noise and 1 = data, for every network. Legend: B batch,
H horizon, A action dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..contexts.context import Context
from ..pred import Pred


@dataclass(frozen=True)
class Path:
    """alpha, sigma: `(steps + 1,)` levels from the start to the clean chunk. native: `(steps,)` the
    objective's own index of each level (a diffusion timestep), or empty."""

    alpha: Tensor
    sigma: Tensor
    native: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.alpha) - 1


class Objective(Protocol):
    def path(self, steps: int, device: torch.device) -> Path:
        """The levels of a sampling run. ValueError where the method cannot take so many steps."""
        ...

    def start(self, noise_BHA: Tensor) -> Tensor:
        """The chunk at the first level, from standard normal noise."""
        ...

    def loss(self, net: nn.Module, a_BHA: Tensor, context: Context, mask_BH: Tensor) -> Tensor:
        """Scalar; `mask_BH` is True where an action counts. Draws from torch's global generator."""
        ...

    def predict_at(self, net: nn.Module, a_BHA: Tensor, path: Path, i: int, context: Context) -> Pred:
        """What the network believes of the chunk at level i; one evaluation of it."""
        ...

    def step(self, pred: Pred, path: Path, i: int, rng: torch.Generator) -> Tensor:
        """The chunk at level i + 1."""
        ...


def masked_mean(error_BHA: Tensor, mask_BH: Tensor) -> Tensor:
    """Mean over the actions that count: divided by how many there are, not by all (ACT's released code
    divides by all, so padding shrinks its loss)."""
    mask = mask_BH[..., None].to(error_BHA.dtype)
    return (error_BHA * mask).sum() / (mask.sum() * error_BHA.shape[-1]).clamp(min=1.0)


def full(value: float | Tensor, like_BHA: Tensor) -> Tensor:
    """One time per row `(B,)`."""
    return torch.as_tensor(value, dtype=torch.float32, device=like_BHA.device).expand(like_BHA.shape[0])
