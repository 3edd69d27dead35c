"""Flow matching (Lipman et al. 2023, arXiv 2210.02747)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..backbones.backbone import Head, outputs
from ..contexts.context import Context
from ..pred import Pred
from .objective import Draw, Level, Losses, Path, compare, full


@dataclass(frozen=True)
class Flow:
    """Conditional flow matching on the straight path.

    time: `beta` draws 1 - tau from 0.999·Beta(1.5, 1) + 0.001 (pi0: more weight on the noisy end), `uniform`
    U(0, 1). predict: the network's output is the velocity x - eps, or the clean chunk `x`, from which the
    velocity follows. A velocity carries the noise through the whole network, so a small one leaves some in
    every dimension of the chunk. loss: whose error is squared, the velocity's or the chunk's, whose square is
    (1 - tau)^2 of that (but for the last twentieth, where the velocity of an `x` is bounded). Source: Lipman
    et al. 2023; pi0 (Black et al. 2024), whose t is 1 - tau; for `x` Li and He 2025 (arXiv 2511.13720), whose
    loss is the velocity's."""

    time: Literal["beta", "uniform"] = "beta"
    """Levels of noise to train at: beta has more of the noisy ones, as pi0; uniform has all alike."""
    predict: Literal["velocity", "x"] = "velocity"
    """What the network gives: the velocity from noise to data, or x, the clean chunk."""
    loss: Literal["velocity", "x"] = "velocity"
    """Whose error is squared: the velocity's, or that of x, the clean chunk."""

    @property
    def needs(self) -> Head:
        return Head()

    def path(self, steps: int) -> Path:
        return Path.linear([i / steps for i in range(steps + 1)])

    def draw(self, a_BHA: Tensor, progress: float, rng: torch.Generator | None) -> Draw:
        tau = torch.rand(len(a_BHA), device=a_BHA.device, generator=rng)
        if self.time == "beta":  # Beta(1.5, 1) has the distribution function u^1.5
            tau = 1 - (0.999 * tau ** (1 / 1.5) + 0.001)
        noise = torch.randn(a_BHA.shape, dtype=a_BHA.dtype, device=a_BHA.device, generator=rng)
        return Draw(noise, tau)

    def losses(
        self, net: nn.Module, a_BHA: Tensor, context: Context, draw: Draw, teacher: Any = None
    ) -> Losses:
        t = draw.tau[:, None, None]
        noisy = (1 - t) * draw.noise + t * a_BHA
        target = a_BHA if self.loss == "x" else a_BHA - draw.noise
        if teacher is not None:
            target = self._compared(teacher(noisy, draw.tau, draw.tau, context).float(), noisy, t)
        output = outputs(net, noisy, draw.tau, draw.tau, context)
        return compare(output, lambda chunk: (self._compared(chunk.float(), noisy, t) - target) ** 2)

    def _compared(self, output: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        if self.loss == "velocity":
            return self._velocity(output, noisy, t)
        return output if self.predict == "x" else noisy + (1 - t) * output

    def _velocity(self, output: Tensor, noisy: Tensor, t: Tensor | float) -> Tensor:
        if self.predict == "velocity":
            return output
        # else the loss would have no bound at tau = 1
        left = (1 - t).clamp(min=0.05) if isinstance(t, Tensor) else max(1 - t, 0.05)
        return (output - noisy) / left

    def believe(self, net: nn.Module, a_BHA: Tensor, level: Level, context: Context) -> Pred:
        tau = full(level.tau, a_BHA)
        output = net(a_BHA, tau, tau, context).float()
        return Pred.from_velocity(a_BHA, level.tau, self._velocity(output, a_BHA, level.tau))
