"""Flow maps: jumps along the flow, learned without a teacher (Boffi et al. 2025, arXiv 2505.18825).

Legend: B batch, H horizon, A action dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ..backbones.backbone import Head, outputs
from ..contexts.context import Context
from ..pred import Pred
from .objective import Draw, Level, Losses, Path, compare, full


@dataclass(frozen=True)
class FlowMap:
    """The network is told two times, s <= t, and gives the average velocity u of the flow between them: a
    jump goes from `a` to a + (t - s)·u. One jump from noise makes a chunk; several equal ones, a better one.

    Loss: flow matching on the diagonal, |u(a_t, t, t) - v|², v = a - noise; and, once `begin` of the training
    is over, the Eulerian self-distillation |u(a_s, s, t) - sg[v + (t - s)·(∂u/∂s + ∂u/∂a·v)]|², whose
    derivative along (v, 1) is one forward-mode product; sg lets no gradient through. The interval t - s grows
    from nothing to all of [0, 1] between `begin` and `whole`. Sampled by `DDIM`, whose Euler step is a jump;
    a solver of higher order has nothing to correct. With a teacher v is its velocity. Source: Boffi et al.
    2025; mean flows (Geng et al. 2025, arXiv 2505.13447) have the same loss with both terms in one."""

    begin: float = 0.1
    """Share of the training after which jumps are learned; before, velocities only."""
    whole: float = 0.5
    """Share of the training after which jumps are of any length."""
    predict: Literal["velocity", "x"] = "velocity"
    """What the network gives: the average velocity, or x, the chunk to which it would lead at time 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.begin <= self.whole <= 1:
            raise ValueError(f"0 <= begin {self.begin} <= whole {self.whole} <= 1 does not hold")

    @property
    def needs(self) -> Head:
        return Head(times=2, forward_mode=True)

    def path(self, steps: int) -> Path:
        return Path.linear([i / steps for i in range(steps + 1)])

    def draw(self, a_BHA: Tensor, progress: float, rng: torch.Generator | None) -> Draw:
        """tau: of the diagonal. more: the jumps' `s` and `t`, once they are learned."""
        tau, one, other = torch.rand(3, len(a_BHA), device=a_BHA.device, generator=rng)
        noise = torch.randn(a_BHA.shape, dtype=a_BHA.dtype, device=a_BHA.device, generator=rng)
        if progress < self.begin:
            return Draw(noise, tau)
        share = min((progress - self.begin) / max(self.whole - self.begin, 1e-9), 1.0)
        middle, half = (one + other) / 2, share * (one - other).abs() / 2
        return Draw(noise, tau, {"s": middle - half, "t": middle + half})

    def losses(
        self, net: nn.Module, a_BHA: Tensor, context: Context, draw: Draw, teacher: Any = None
    ) -> Losses:
        def velocity(a: Tensor, time: Tensor) -> Tensor:
            if teacher is None:
                return a_BHA - draw.noise
            return self._velocity(teacher(a, time, time, context).float(), a, time)

        tau = draw.tau
        at_tau = _between(draw.noise, a_BHA, tau)
        target = velocity(at_tau, tau)
        output = outputs(net, at_tau, tau, tau, context)
        losses = compare(output, lambda chunk: (self._velocity(chunk.float(), at_tau, tau) - target) ** 2)
        if "s" not in draw.more:
            return losses
        s, t = draw.more["s"], draw.more["t"]
        at_s = _between(draw.noise, a_BHA, s)
        v = velocity(at_s, s)

        def average(a: Tensor, s: Tensor) -> Tensor:
            return self._velocity(net(a, s, t, context).float(), a, s)

        u, derivative = cast(
            "tuple[Tensor, Tensor]", torch.func.jvp(average, (at_s, s), (v, torch.ones_like(s)))
        )
        jump = v + (t - s)[:, None, None] * derivative.detach()
        return Losses(losses.error + (u - jump) ** 2, losses.extras)

    def _velocity(self, output: Tensor, a: Tensor, s: Tensor) -> Tensor:
        if self.predict == "velocity":
            return output
        # else the loss would have no bound at s = 1
        return (output - a) / (1 - s).clamp(min=0.05)[:, None, None]

    def believe(self, net: nn.Module, a_BHA: Tensor, level: Level, context: Context) -> Pred:
        """x and eps lie on the line of the jump to the level after this one: DDIM's step is that jump."""
        s, t = full(level.tau, a_BHA), full(level.next_tau, a_BHA)
        u = self._velocity(net(a_BHA, s, t, context).float(), a_BHA, s)
        return Pred.from_velocity(a_BHA, level.tau, u)


def _between(noise: Tensor, a: Tensor, tau: Tensor) -> Tensor:
    t = tau[:, None, None]
    return (1 - t) * noise + t * a
