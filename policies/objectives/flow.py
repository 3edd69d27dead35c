"""Flow matching (Lipman et al. 2023, arXiv 2210.02747)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..contexts.context import Context
from ..pred import Pred
from .objective import Path, full, masked_mean


@dataclass(frozen=True)
class Flow:
    """Conditional flow matching on the straight path, integrated by Euler steps; the loss is the velocity's.

    time: `beta` draws 1 - tau from 0.999·Beta(1.5, 1) + 0.001 (pi0: more weight on the noisy end), `uniform`
    U(0, 1). predict: the network's output is the velocity x - eps, or the clean chunk `x`, from which the
    velocity follows. A velocity carries the noise through the whole network, so a small one leaves some in
    every dimension of the chunk. Source: Lipman et al. 2023; pi0 (Black et al. 2024), whose t is 1 - tau; for
    `x` Li and He 2025 (arXiv 2511.13720)."""

    time: Literal["beta", "uniform"] = "beta"
    """Levels of noise to train at: beta has more of the noisy ones, as pi0; uniform has all alike."""
    predict: Literal["velocity", "x"] = "velocity"
    """What the network gives: the velocity from noise to data, or x, the clean chunk."""

    def path(self, steps: int, device: torch.device) -> Path:
        tau = torch.linspace(0, 1, steps + 1, device=device)
        return Path(tau, 1 - tau)

    def start(self, noise_BHA: Tensor) -> Tensor:
        return noise_BHA

    def loss(self, net: nn.Module, a_BHA: Tensor, context: Context, mask_BH: Tensor) -> Tensor:
        tau = torch.rand(len(a_BHA), device=a_BHA.device)
        if self.time == "beta":  # Beta(1.5, 1) has the distribution function u^1.5
            tau = 1 - (0.999 * tau ** (1 / 1.5) + 0.001)
        eps = torch.randn_like(a_BHA)
        t = tau[:, None, None]
        noisy = (1 - t) * eps + t * a_BHA
        v = self._velocity(net(noisy, tau, tau, context).float(), noisy, t)
        return masked_mean((v - (a_BHA - eps)) ** 2, mask_BH)

    def _velocity(self, output: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        if self.predict == "velocity":
            return output
        return (output - noisy) / (1 - t).clamp(min=0.05)  # else the loss would have no bound at tau = 1

    def predict_at(self, net: nn.Module, a_BHA: Tensor, path: Path, i: int, context: Context) -> Pred:
        tau = full(path.alpha[i], a_BHA)
        output = net(a_BHA, tau, tau, context).float()
        return Pred.from_velocity(a_BHA, path.alpha[i], self._velocity(output, a_BHA, path.alpha[i]))

    def step(self, pred: Pred, path: Path, i: int, rng: torch.Generator) -> Tensor:
        return pred.a + (path.alpha[i + 1] - path.alpha[i]) * pred.velocity
