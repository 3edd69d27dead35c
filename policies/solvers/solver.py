"""The contract of solvers: how a chunk gets from one level of a path to the next, for any objective. Each
method has a file of its own beside this one. Legend: B batch (times candidates), H horizon, A action
dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..field import Field


@dataclass(frozen=True)
class Move:
    """A step as the Gaussian that it is: mean `(B, H, A)`, std a number, the same for all elements; 0 for a
    deterministic step.

    state: what the solver wants to have at its next step. rest: `(B,)` bool, rows that need no more
    steps."""

    mean: Tensor
    std: float = 0.0
    state: Any = None
    rest: Tensor | None = None

    def draw(self, noise: Tensor) -> Tensor:
        """The next chunk; `noise` is standard normal."""
        return self.mean + self.std * noise if self.std else self.mean

    def log_prob(self, a: Tensor) -> Tensor:
        """Log density `(B,)` of having gone to `a`. ValueError for a deterministic step, which has none."""
        if not self.std:
            raise ValueError("a deterministic step has no log-probability: sample with DDIM(eta > 0)")
        z = (a - self.mean) / self.std
        return (-0.5 * z**2 - math.log(self.std) - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)


class Solver(Protocol):
    def step(self, field: Field, a: Tensor, i: int, state: Any) -> Move:
        """From level `i` of `field.path` to level `i + 1`, asking the network through `field`. state: of the
        last step's `Move`; None at the first."""
        ...


def clipped(
    a: Tensor, x: Tensor, eps: Tensor, alpha: float, sigma: float, clip: float
) -> tuple[Tensor, Tensor]:
    """(x within ±clip, the noise that then explains `a`). The noise must be taken anew, or a clipped guidance
    pushes the wrong way: x stops at the clip while eps goes on, against it. clip 0: as they are."""
    if not clip:
        return x, eps
    x = x.clamp(-clip, clip)
    return x, (a - alpha * x) / sigma if sigma > 0 else torch.zeros_like(x)
