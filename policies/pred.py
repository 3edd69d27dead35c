"""One prediction of the network, seen four ways.

Every model here describes a Gaussian path `a = alpha·x + sigma·eps` from noise (tau = 0) to data (tau = 1),
so what a network says about the clean chunk x, the noise eps, the score or the velocity is the same
statement. `Pred` holds it once and shows each view, so that guidance written for one view works with any
objective.

Legend of suffixes: B batch (times candidates), H horizon, A action dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pred:
    """What the network believes at `a` `(B, H, A)`, on the path level `(alpha, sigma)` (0-d or `(B, 1, 1)`
    tensors).

    x: the expected clean chunk. eps: the expected noise. They satisfy `a = alpha·x + sigma·eps`.
    """

    a: Tensor
    alpha: Tensor
    sigma: Tensor
    x: Tensor
    eps: Tensor

    @staticmethod
    def from_x(a: Tensor, alpha: Tensor, sigma: Tensor, x: Tensor) -> Pred:
        """At sigma = 0 there is no noise to speak of: eps is 0 there."""
        noise = torch.where(sigma > 0, (a - alpha * x) / sigma.clamp(min=1e-12), torch.zeros_like(a))
        return Pred(a, alpha, sigma, x, noise)

    @staticmethod
    def from_eps(a: Tensor, alpha: Tensor, sigma: Tensor, eps: Tensor) -> Pred:
        """alpha must be positive: a pure-noise level says nothing about x through eps."""
        return Pred(a, alpha, sigma, (a - sigma * eps) / alpha, eps)

    @staticmethod
    def from_velocity(a: Tensor, tau: Tensor, v: Tensor) -> Pred:
        """The linear path alpha = tau, sigma = 1 - tau, where v = x - eps. No division, so tau = 0 and 1 are
        exact."""
        return Pred(a, tau, 1 - tau, a + (1 - tau) * v, a - tau * v)

    @property
    def tau(self) -> Tensor:
        """Time on the linear path with the same signal-to-noise ratio."""
        return self.alpha / (self.alpha + self.sigma)

    @property
    def score(self) -> Tensor:
        """Gradient of the log density at `a`. Infinite at sigma = 0, where the density is the data's own."""
        return -self.eps / self.sigma

    @property
    def velocity(self) -> Tensor:
        """d(a_linear)/d(tau) of the linear path through the same x and eps, whatever path `a` is on."""
        return self.x - self.eps

    def tilt(self, g: Tensor, weight: float) -> Pred:
        """Belief under the density p·exp(weight·Q) with `g = dQ/da`: the score gains `weight·g`.

        eps changes by -sigma·weight·g and x by (sigma²/alpha)·weight·g; on the linear path that is a velocity
        change of ((1-tau)/tau)·weight·g. A weight must never be moved between views without these factors.
        """
        shift = weight * g
        return Pred(
            self.a,
            self.alpha,
            self.sigma,
            self.x + (self.sigma**2 / self.alpha) * shift,
            self.eps - self.sigma * shift,
        )
