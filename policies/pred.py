"""One prediction of the network, seen four ways.

Every model here describes a Gaussian path `a = alpha·x + sigma·eps` from noise (tau = 0) to data (tau = 1),
so what a network says about the clean chunk x, the noise eps, the score or the velocity is the same
statement. `Pred` holds it once and shows each view, so that guidance written for one view works with any
objective.

Legend of suffixes: B batch (times candidates), H horizon, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pred:
    """What the network believes at `a` `(B, H, A)`, on the path level `(alpha, sigma)` (floats, or 0-d or
    `(B, 1, 1)` tensors).

    x: the expected clean chunk. eps: the expected noise. They satisfy `a = alpha·x + sigma·eps` wherever
    sigma > 0.
    """

    a: Tensor
    alpha: Tensor | float
    sigma: Tensor | float
    x: Tensor
    eps: Tensor

    @staticmethod
    def from_x(a: Tensor, alpha: Tensor | float, sigma: Tensor | float, x: Tensor) -> Pred:
        """At sigma = 0 there is no noise to speak of: eps is 0 there."""
        s = _scalar(sigma, a)
        eps = torch.where(s > 0, (a - alpha * x) / s.clamp(min=1e-12), torch.zeros_like(a))
        return Pred(a, alpha, sigma, x, eps)

    @staticmethod
    def from_eps(a: Tensor, alpha: Tensor | float, sigma: Tensor | float, eps: Tensor) -> Pred:
        """alpha must be positive: a pure-noise level says nothing about x through eps."""
        return Pred(a, alpha, sigma, (a - sigma * eps) / alpha, eps)

    @staticmethod
    def from_velocity(a: Tensor, tau: Tensor | float, v: Tensor) -> Pred:
        """The linear path alpha = tau, sigma = 1 - tau, where v = x - eps. No division, so tau = 0 and 1 are
        exact."""
        return Pred(a, tau, 1 - tau, a + (1 - tau) * v, a - tau * v)

    @staticmethod
    def mix(preds: Sequence[Pred], weights: Sequence[float | Tensor]) -> Pred:
        """`Σ weight·pred` of predictions at one chunk and level. Weights that sum to 1 keep `a = alpha·x +
        sigma·eps`; they may be negative, as in classifier-free guidance."""
        x = sum((w * p.x for w, p in zip(weights, preds, strict=True)), torch.zeros_like(preds[0].x))
        eps = sum((w * p.eps for w, p in zip(weights, preds, strict=True)), torch.zeros_like(preds[0].x))
        return Pred(preds[0].a, preds[0].alpha, preds[0].sigma, x, eps)

    @property
    def tau(self) -> Tensor:
        """Time on the linear path with the same signal-to-noise ratio; 0 on a level without either."""
        alpha, sigma = _scalar(self.alpha, self.a), _scalar(self.sigma, self.a)
        return torch.where(alpha + sigma > 0, alpha / (alpha + sigma).clamp(min=1e-12), 0.0)

    @property
    def score(self) -> Tensor:
        """Gradient of the log density at `a`. Infinite at sigma = 0, where the density is the data's own."""
        return -self.eps / self.sigma

    @property
    def velocity(self) -> Tensor:
        """d(a_linear)/d(tau) of the linear path through the same x and eps, whatever path `a` is on."""
        return self.x - self.eps

    def push(self, dv: Tensor) -> Pred:
        """The velocity of the linear path changed by `dv` `(B, H, A)`: x moves by (1 - tau)·dv and eps by
        -tau·dv, finite at every level from pure noise to data. The form in which guidance is given."""
        tau = self.tau
        return Pred(self.a, self.alpha, self.sigma, self.x + (1 - tau) * dv, self.eps - tau * dv)

    def tilt(self, g: Tensor, weight: float) -> Pred:
        """Belief under the density p·exp(weight·Q) with `g = dQ/da`: the score gains `weight·g`.

        eps changes by -sigma·weight·g and x by (sigma²/alpha)·weight·g; on the linear path that is a velocity
        change of ((1-tau)/tau)·weight·g. A weight must never be moved between views without these factors.
        Pure noise (alpha = 0) says nothing of x, so there nothing is tilted.
        """
        alpha, sigma = _scalar(self.alpha, self.a), _scalar(self.sigma, self.a)
        shift = weight * torch.where(alpha > 0, g, torch.zeros_like(g))
        return Pred(
            self.a,
            self.alpha,
            self.sigma,
            self.x + (sigma**2 / alpha.clamp(min=1e-12)) * shift,
            self.eps - sigma * shift,
        )


def _scalar(value: Tensor | float, like: Tensor) -> Tensor:
    """A number is written by the device: copied to it, it would make the device wait for the processor."""
    if isinstance(value, Tensor):
        return value.to(like)
    return torch.full((), value, dtype=like.dtype, device=like.device)
