"""Energy-based transformers as policies (EBT-Policy, arXiv 2510.27545), over any network.

Legend: B batch, K steps of descent, H horizon, A action dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..backbones.backbone import Head
from ..contexts.context import Context
from ..pred import Pred
from .objective import Draw, Level, Losses, Path, full


@dataclass(frozen=True)
class EBT:
    """The chunk is where a descent on a learned energy ends; training goes down K steps from noise and
    compares the end with the demonstration, through the gradient of the last step.

    The steps are detached from each other, so that only second derivatives within a step are needed. A chunk
    is disturbed before every step, less and less, and the size of the steps is drawn. With `start` "noise",
    as published, the noise knows nothing of the demonstration: whatever minimises the squared error is then
    the mean of the demonstrations given the observation, as in regression. "path" starts between noise and
    demonstration, as denoising does, so that one mode is told from another; the network is not told where
    (Sun et al. 2025, arXiv 2502.13129, say why it need not be).

    Not as published: the chunk is not normalised between the steps (RMSNorm over an action of two elements
    erases how large it is), E is descended, not exp(E), which is stable with that norm only, and `step_size` is in units in which the size of the chunk cancels (published:
    alpha / tau_E, about 111, times the gradient of a mean over about as many elements).

    A prediction's x is where one undisturbed step leads, its eps the chunk itself, so that its velocity is
    the step and guidance adds to it."""

    steps: int = 6
    """Least steps of descent in training, K."""
    more_steps: int = 4
    """Up to so many more are drawn, for the whole batch."""
    momentum: float = 0.9
    """Share of the last step that is taken again, 0 to below 1; the solver's should be the same."""
    step_size: float = 1.0
    """A step is this times the elements of a chunk times the gradient."""
    step_spread: float = 1.5
    """The size of a step in training is drawn from 1/this to this times as much, at least 1."""
    disturb: tuple[float, float] = (0.2, 0.002)
    """Standard deviation of the disturbance before the first and the last step of training, normalised."""
    exponential: bool = False
    """Descend exp(E) instead of E, as published: steps are longer where the energy is high. Without a bound
    on the chunk such steps run away where it is very high."""
    every_step: bool = False
    """Compare the chunk with the demonstration after each step; else after the last one."""
    start: Literal["noise", "path"] = "noise"
    """Where training's descent begins: at noise, as published, or evenly anywhere on the straight line from
    noise to the demonstration."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.more_steps < 0 or self.step_size <= 0 or self.step_spread < 1:
            raise ValueError(
                "EBT needs at least 1 step, more_steps not negative, a positive step_size and a step_spread "
                "of at least 1"
            )
        if not 0 <= self.momentum < 1 or min(self.disturb) < 0:
            raise ValueError("EBT's momentum lies in 0..1, below 1, and its disturbances are not negative")

    @property
    def needs(self) -> Head:
        return Head("energy", second_order=True)

    def path(self, steps: int) -> Path:
        """From noise, then chunks that are taken as clean ones: as many levels as steps."""
        if steps < 1:
            raise ValueError(f"a descent takes at least 1 step, not {steps}")
        return Path.of([0.0, *[1.0] * steps], [1.0, *[0.0] * steps])

    def draw(self, a_BHA: Tensor, progress: float, rng: torch.Generator | None) -> Draw:
        """more: `steps` `(B,)`, the same K in all rows; `disturbance` `(B, K, H, A)` standard normal; `size`
        `(B, K)` the factors of the steps' sizes."""
        b, device = len(a_BHA), a_BHA.device
        k = self.steps + int(torch.randint(0, self.more_steps + 1, (), device=device, generator=rng))
        noise = torch.randn(a_BHA.shape, dtype=a_BHA.dtype, device=device, generator=rng)
        tau = full(0.0, a_BHA)
        if self.start == "path":
            tau = torch.rand(b, device=device, generator=rng)
        shape = (b, k, *a_BHA.shape[1:])
        disturbance = torch.randn(shape, dtype=a_BHA.dtype, device=device, generator=rng)
        share = torch.rand(b, k, dtype=a_BHA.dtype, device=device, generator=rng)
        size = 1 / self.step_spread + (self.step_spread - 1 / self.step_spread) * share
        steps = torch.full((b,), k, device=device)
        return Draw(noise, tau, {"steps": steps, "disturbance": disturbance, "size": size})

    def losses(
        self, net: nn.Module, a_BHA: Tensor, context: Context, draw: Draw, teacher: Any = None
    ) -> Losses:
        if teacher is not None:
            raise ValueError("EBT learns from data: another network's energy says nothing of where to go")
        tau, k = draw.tau[:, None, None].to(a_BHA.dtype), int(draw.more["steps"][0])
        a, v = tau * a_BHA + (1 - tau) * draw.noise, torch.zeros_like(a_BHA)
        total = torch.zeros_like(a_BHA)
        trained = range(k) if self.every_step else range(k - 1, k)
        for i in range(k):
            a = a.detach() + self._disturb(i, k) * draw.more["disturbance"][:, i]
            carried = self.momentum * v.detach()
            keep = i in trained and torch.is_grad_enabled()
            size = draw.more["size"][:, i, None, None]
            v = carried - size * self._down(net, a + carried, context, keep)
            a = a + v
            if i in trained:
                total = total + (a - a_BHA) ** 2
        return Losses(total / len(trained))

    def _disturb(self, i: int, k: int) -> float:
        first, last = self.disturb
        return last + 0.5 * (first - last) * (1 + math.cos(math.pi * i / max(k - 1, 1)))

    def _down(self, net: nn.Module, a_BHA: Tensor, context: Context, keep: bool) -> Tensor:
        """A step's length times the energy's gradient. keep: so that it can be differentiated."""
        with torch.enable_grad():
            at = a_BHA if keep and a_BHA.requires_grad else a_BHA.detach().requires_grad_()
            energy = self.energy(net, at, context)
            summed = (energy.exp() if self.exponential else energy).sum()
            (gradient,) = torch.autograd.grad(summed, at, create_graph=keep)
        return self.step_size * a_BHA[0].numel() * gradient

    def energy(self, net: nn.Module, a_BHA: Tensor, context: Context) -> Tensor:
        """E `(B,)`, lower for chunks that fit better."""
        zero = full(0.0, a_BHA)
        return net(a_BHA, zero, zero, context)

    def believe(self, net: nn.Module, a_BHA: Tensor, level: Level, context: Context) -> Pred:
        x = a_BHA - self._down(net, a_BHA, context, torch.is_grad_enabled())
        return Pred(a_BHA, 0.0, 1.0, x, a_BHA)
