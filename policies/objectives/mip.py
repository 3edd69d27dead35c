"""Minimal iterative policies and the steps that lead to them, from Much Ado About Noising (Pan et al. 2025).

The paper (arXiv 2512.01809) takes generative policies apart, one property at a time: regression predicts the
chunk in one pass (`Regression("l2")`), straight flow adds noise at the input, two-step denoising (TSD) adds a
second, supervised pass, MIP takes the noise at the input away again and keeps the second pass, flow (`Flow`)
fits the whole distribution. Legend: B batch, H horizon, A action dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..backbones.backbone import Head, outputs
from ..contexts.context import Context
from ..pred import Pred
from .objective import Draw, Level, Losses, Path, compare, full


@dataclass(frozen=True)
class MIP:
    """The chunk by regression, then once more from its own first answer, which training noises a little.

    Loss: |net(0, 0) - a|² + |net(t*·a + (1 - t*)·z, t*) - a|², z standard normal. Sampled deterministically
    in two passes: from zero, then from t* times the first answer. Source: Pan et al. 2025."""

    t_star: float = 0.9
    """Time of the second pass, between 0 and 1; 1 - t_star of noise is added to its input in training."""
    form: Literal["paper", "code"] = "paper"
    """The loss as in the paper, or as in the authors' code: errors divided by t_star and by 1 - t_star, so
    that the second pass weighs 81 times as much, and the chunk in its input not scaled by t_star."""

    def __post_init__(self) -> None:
        _require_between(self.t_star)

    @property
    def needs(self) -> Head:
        return Head()

    @property
    def _alpha(self) -> float:
        return self.t_star if self.form == "paper" else 1.0

    def path(self, steps: int) -> Path:
        _require_steps("MIP", steps, 2)
        return Path((0.0, self.t_star, 1.0), (0.0, self._alpha, 1.0), (0.0, 0.0, 0.0))

    def draw(self, a_BHA: Tensor, progress: float, rng: torch.Generator | None) -> Draw:
        return _noise(a_BHA, self.t_star, rng)

    def losses(
        self, net: nn.Module, a_BHA: Tensor, context: Context, draw: Draw, teacher: Any = None
    ) -> Losses:
        second = self._alpha * a_BHA + (1 - self.t_star) * draw.noise
        weights = (1.0, 1.0) if self.form == "paper" else (self.t_star**-2, (1 - self.t_star) ** -2)
        inputs = (torch.zeros_like(a_BHA), second)
        return _two_passes(net, inputs, (a_BHA, a_BHA), weights, draw.tau, context, teacher)

    def believe(self, net: nn.Module, a_BHA: Tensor, level: Level, context: Context) -> Pred:
        tau = full(level.tau, a_BHA)
        x = net(a_BHA if level.i else torch.zeros_like(a_BHA), tau, tau, context).float()
        return Pred(a_BHA, level.alpha, level.sigma, x, torch.zeros_like(x))


@dataclass(frozen=True)
class StraightFlow:
    """Regression that starts from noise instead of zero: |net(z, 0) - a|², sampled in one pass. Its best
    answer does not depend on the noise. Source: Pan et al. 2025."""

    @property
    def needs(self) -> Head:
        return Head()

    def path(self, steps: int) -> Path:
        _require_steps("straight flow", steps, 1)
        return Path.linear((0.0, 1.0))

    def draw(self, a_BHA: Tensor, progress: float, rng: torch.Generator | None) -> Draw:
        return _noise(a_BHA, 0.0, rng)

    def losses(
        self, net: nn.Module, a_BHA: Tensor, context: Context, draw: Draw, teacher: Any = None
    ) -> Losses:
        target = a_BHA if teacher is None else teacher(draw.noise, draw.tau, draw.tau, context).float()
        output = outputs(net, draw.noise, draw.tau, draw.tau, context)
        return compare(output, lambda chunk: (chunk.float() - target) ** 2)

    def believe(self, net: nn.Module, a_BHA: Tensor, level: Level, context: Context) -> Pred:
        tau = full(level.tau, a_BHA)
        return Pred.from_x(a_BHA, level.alpha, level.sigma, net(a_BHA, tau, tau, context).float())


@dataclass(frozen=True)
class TSD:
    """Two-step denoising: from noise to the noised chunk b = t*·a + (1 - t*)·z, and from it to the chunk.

    Loss: |net(z, 0) - b|² + |net(b, t*) - a|², with one z. Sampled in two passes from noise. The authors'
    code draws the noise of b apart, which leaves the first pass only its mean to learn. Source: Pan et al.
    2025."""

    t_star: float = 0.9
    """Time of the chunk in between, between 0 and 1."""

    def __post_init__(self) -> None:
        _require_between(self.t_star)

    @property
    def needs(self) -> Head:
        return Head()

    def path(self, steps: int) -> Path:
        _require_steps("two-step denoising", steps, 2)
        return Path.linear((0.0, self.t_star, 1.0))

    def draw(self, a_BHA: Tensor, progress: float, rng: torch.Generator | None) -> Draw:
        return _noise(a_BHA, self.t_star, rng)

    def losses(
        self, net: nn.Module, a_BHA: Tensor, context: Context, draw: Draw, teacher: Any = None
    ) -> Losses:
        between = self.t_star * a_BHA + (1 - self.t_star) * draw.noise
        inputs, targets = (draw.noise, between), (between, a_BHA)
        return _two_passes(net, inputs, targets, (1.0, 1.0), draw.tau, context, teacher)

    def believe(self, net: nn.Module, a_BHA: Tensor, level: Level, context: Context) -> Pred:
        tau = full(level.tau, a_BHA)
        output = net(a_BHA, tau, tau, context).float()
        if level.i == 0:  # it gives the chunk in between, which holds the noise `a` itself
            output = (output - (1 - self.t_star) * a_BHA) / self.t_star
        return Pred.from_x(a_BHA, level.alpha, level.sigma, output)


def _two_passes(
    net: nn.Module,
    inputs: tuple[Tensor, Tensor],
    targets: tuple[Tensor, Tensor],
    weights: Sequence[float],
    tau: Tensor,
    context: Context,
    teacher: Any,
) -> Losses:
    """The sum of the weighted squared errors at times 0 and `tau` `(B,)`, both in one batch of 2·B rows."""
    x, times = torch.cat(inputs), torch.cat([torch.zeros_like(tau), tau])
    twice = Context.cat([context, context])
    target = torch.cat(targets) if teacher is None else teacher(x, times, times, twice).float()
    both = compare(outputs(net, x, times, times, twice), lambda chunk: (chunk.float() - target) ** 2)
    first, second = both.error.chunk(2)
    return Losses(weights[0] * first + weights[1] * second, both.extras)


def _noise(a_BHA: Tensor, tau: float, rng: torch.Generator | None) -> Draw:
    noise = torch.randn(a_BHA.shape, dtype=a_BHA.dtype, device=a_BHA.device, generator=rng)
    return Draw(noise, full(tau, a_BHA))


def _require_between(t_star: float) -> None:
    if not 0 < t_star < 1:
        raise ValueError(f"t_star is {t_star}: it must lie between 0 and 1")


def _require_steps(name: str, steps: int, own: int) -> None:
    if steps != own:
        raise ValueError(f"{name} samples in {own} step{'s' if own > 1 else ''}, not {steps}")
