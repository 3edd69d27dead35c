"""The contract of training objectives; each method has a file of its own beside this one.

An objective says what the network's output means, for training and for sampling at once: the levels from
noise to data, how a chunk is noised (as data, a `Draw`), the errors, and what the network believes of the
clean chunk at a level (`Pred`). How to get from one level to the next is the solver's (`policies.solvers`).
Time is tau, 0 = noise and 1 = data, for every network. Legend: B batch, H horizon, A action dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..backbones.backbone import Head, Output
from ..contexts.context import Context
from ..pred import Pred


@dataclass(frozen=True)
class Level:
    """One level of a path, `a = alpha·x + sigma·eps`, and the time of the one after it (1 at the last)."""

    i: int
    tau: float
    alpha: float
    sigma: float
    next_tau: float


@dataclass(frozen=True)
class Path:
    """The `steps + 1` levels of a sampling run from the start to the clean chunk; nothing else computes them.

    A chunk begins as `first` times standard normal noise, that is `start`, by default `sigma[0]`: where sigma
    is 0 throughout, sampling is deterministic and begins at zero."""

    tau: tuple[float, ...]
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]
    start: float | None = None

    @property
    def first(self) -> float:
        return self.sigma[0] if self.start is None else self.start

    @staticmethod
    def linear(tau: Sequence[float]) -> Path:
        """alpha = tau, sigma = 1 - tau."""
        return Path(tuple(tau), tuple(tau), tuple(1 - t for t in tau))

    @staticmethod
    def of(alpha: Sequence[float], sigma: Sequence[float]) -> Path:
        """tau = alpha / (alpha + sigma): the linear path's time of the same signal-to-noise ratio."""
        tau = tuple(a / (a + s) if a + s > 0 else 0.0 for a, s in zip(alpha, sigma, strict=True))
        return Path(tau, tuple(alpha), tuple(sigma))

    def __len__(self) -> int:
        return len(self.tau) - 1

    def __getitem__(self, i: int) -> Level:
        return Level(i, self.tau[i], self.alpha[i], self.sigma[i], self.tau[min(i + 1, len(self))])


@dataclass(frozen=True)
class Draw:
    """What a training step draws for B chunks. noise: `(B, H, A)` standard normal. tau: `(B,)` the level.
    more: other draws of the objective, each with a leading axis B; in training `mask` `(B, H)` bool, the
    actions that count, too, and where rows are weighted `weight` `(B,)`."""

    noise: Tensor
    tau: Tensor
    more: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Losses:
    """error: `(B, H, A)`, unreduced, so that rows can be weighted and padding be left out. extras: scalars
    by name, weighted, to be added; what is of rows is a mean as `row_weights` says."""

    error: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    @property
    def needs(self) -> Head:
        """What it needs of the network."""
        ...

    def path(self, steps: int) -> Path:
        """The levels of a sampling run. ValueError where the method cannot take so many steps."""
        ...

    def draw(self, a_BHA: Tensor, progress: float, rng: torch.Generator | None) -> Draw:
        """The noise and level of a training step. progress: share of the training that is over, 0 to 1. rng:
        None for torch's global generator."""
        ...

    def losses(
        self, net: nn.Module, a_BHA: Tensor, context: Context, draw: Draw, teacher: Any = None
    ) -> Losses:
        """The errors at that draw. teacher: a network `(x, s, t, context) -> output` to learn from, for
        distillation; None: the data only."""
        ...

    def believe(self, net: nn.Module, a_BHA: Tensor, level: Level, context: Context) -> Pred:
        """What the network believes of the chunk at a level."""
        ...


def masked_mean(error_BHA: Tensor, mask_BH: Tensor, weight_B: Tensor | None = None) -> Tensor:
    """Mean over the actions that count: divided by how many there are, not by all (ACT's released code
    divides by all, so padding shrinks its loss). weight_B: of the rows; it is not divided by, so that weights
    of mean 1 keep the loss's size."""
    mask = mask_BH[..., None].to(error_BHA.dtype)
    count = (mask.sum() * error_BHA.shape[-1]).clamp(min=1.0)
    if weight_B is not None:
        mask = mask * weight_B[:, None, None].to(mask.dtype)
    return (error_BHA * mask).sum() / count


def row_weights(draw: Draw) -> Tensor:
    """`(B,)`: how much each row counts in the mean of what is of rows, not of actions. Its weight, and
    nothing where none of its actions counts."""
    weight = draw.more.get("weight", torch.ones_like(draw.tau))
    if "mask" not in draw.more:
        return weight
    counts = draw.more["mask"].any(1)
    return torch.where(counts, weight * (len(counts) / counts.sum().clamp(min=1)), 0.0)


def compare(output: Output, error: Callable[[Tensor], Tensor]) -> Losses:
    """The errors of all that a network says at once: of its chunk, and of each view on the actions that the
    view is about, by the one function `error` of a chunk `(B, H, A)`; with the network's own losses."""
    total = error(output.chunk)
    for chunk, mask_H in output.views:
        total = total + error(chunk) * (mask_H * (len(mask_H) / mask_H.sum()))[:, None]
    return Losses(total, output.extras)


def full(value: float | Tensor, like_BHA: Tensor) -> Tensor:
    """One time per row `(B,)`. Where it is a number, the tensor knows it, see `known`."""
    if isinstance(value, Tensor):
        return value.to(like_BHA.device, torch.float32).expand(like_BHA.shape[0])
    times = torch.full((like_BHA.shape[0],), value, dtype=torch.float32, device=like_BHA.device)
    times.known = float(value)  # type: ignore[attr-defined]
    return times


def known(times_B: Tensor) -> float | None:
    """The time of all rows, where the processor knows it without asking the device."""
    return getattr(times_B, "known", None)
