"""Neural Dynamic Policies (Bahl et al. 2020, arXiv 2012.02788): the network gives a goal and a forcing, and a
second-order dynamical system makes the chunk of them, so that it is smooth by construction.

Legend: B batch, H horizon, A action dimensions, N basis functions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..contexts.context import Context
from .backbone import Backbone, Head, Output, Sizes, outputs, require_head
from .mlp import ResidualMLP

PHASE_RATE = 1.0  # a_x: the phase falls from 1 to 1/e over a chunk


@dataclass(frozen=True)
class NeuralDynamics:
    """A chunk is the way of a critically damped spring from where the robot is now to a goal g, pushed by a
    forcing of N basis functions. The `inner` network gives, for each action dimension, N weights w, the goal
    and the velocity at the start: the rows of a chunk of N + 2 actions, or of H where that is more.

        y'' = alpha (alpha/4 (g - y) - y') + f,    f = x (Σ psi_i w_i / Σ psi_i) (g - y_0),    x' = -x

    with time 0 now and 1 at the end of the chunk. The start y_0 is the state now, or with relative actions 0
    (with `Relative("none")`: one whose steps have scales of their own bends the way). Faithful: the system,
    its basis and explicit Euler, y moving by the old velocity. Not: the goal is not multiplied by the scale
    of the weights, since chunks are normalised; the published velocity is measured, this one the network's,
    which sees two observations; and the steps, which are linear in (y_0, y'_0, g, w), are taken once, when
    the network is built, not in every pass. Study: benchmarks/ndp_strokes.py,
    benchmarks/studies/ndp_peg.toml."""

    inner: Backbone = ResidualMLP()
    """The network that gives weights, goal and velocity; it sees the noisy chunk, if there is one."""
    basis: int = 14
    """N, basis functions of the forcing; up to horizon - 2 the inner network is as large as without
    dynamics."""
    alpha: float = 25.0
    """Damping, per chunk: the spring is at its goal after some 10/alpha of the chunk. Stable below
    4·substeps·horizon; from half of that on it rings."""
    substeps: int = 4
    """Euler steps for one action; they cost nothing."""
    forcing: Literal["scaled", "unscaled"] = "scaled"
    """Multiply the forcing by g - y_0, as published, or not: where the goal is the start, scaled forcing
    vanishes, and the chunk cannot leave and come back."""
    weight_scale: float = 100.0
    """What the network's weights are multiplied by: a forcing must be of the size of alpha^2 / 4 to
    matter."""

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        require_head(self, head, Head("chunk", 2, forward_mode=True, second_order=True))
        if self.basis < 1 or self.substeps < 1 or self.alpha <= 0:
            raise ValueError("NeuralDynamics needs basis and substeps of at least 1, and a positive alpha")
        if sizes.n_past_actions:
            raise ValueError("NeuralDynamics begins its chunk now: set n_past_actions to 0")
        if self.alpha >= (bound := 4 * self.substeps * sizes.horizon):
            raise ValueError(
                f"alpha {self.alpha:g} is unstable with {self.substeps} substeps and a horizon of "
                f"{sizes.horizon}: it must be less than {bound}, and better less than {bound // 2}"
            )
        return NeuralDynamicsNet(self, sizes, head)


class NeuralDynamicsNet(nn.Module):
    def __init__(self, c: NeuralDynamics, sizes: Sizes, head: Head) -> None:
        super().__init__()
        self.basis, self.weight_scale, self.scaled = c.basis, c.weight_scale, c.forcing == "scaled"
        self.rows = max(sizes.horizon, c.basis + 2)
        self.inner = c.inner.build(replace(sizes, horizon=self.rows), head)
        self.evaluations = int(getattr(self.inner, "evaluations", 1))
        self.response: Tensor
        table = responses(sizes.horizon, c.substeps, c.alpha, c.basis)
        self.register_buffer("response", torch.from_numpy(table).float(), persistent=False)

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        return self._integrate(self.inner(self._padded(x_BHA), s, t, context), context)

    def outputs(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Output:
        output = outputs(self.inner, self._padded(x_BHA), s, t, context)
        return Output(self._integrate(output.chunk, context), extras=output.extras)

    def _padded(self, x_BHA: Tensor) -> Tensor:
        return nn.functional.pad(x_BHA, (0, 0, 0, self.rows - x_BHA.shape[1]))

    def _integrate(self, parameters_BRA: Tensor, context: Context) -> Tensor:
        if context.present is None:
            raise ValueError(
                "NeuralDynamics begins where the robot is now, and the observation does not say: the state "
                "needs an element for each element of the action, of the same name"
            )
        n, parameters = self.basis, parameters_BRA.to(self.response.dtype)
        weights, goal, velocity = parameters[:, :n], parameters[:, n], parameters[:, n + 1]
        start = context.present.to(parameters)
        forcing = self.weight_scale * weights
        if self.scaled:
            forcing = forcing * (goal - start)[:, None]
        causes = torch.cat([torch.stack([start, velocity, goal], dim=1), forcing], dim=1)
        return torch.einsum("hc,bca->bha", self.response, causes)


def responses(steps: int, substeps: int, alpha: float, basis: int) -> np.ndarray:
    """`(H, 3 + N)` float64: what one unit of y_0, y'_0, g and of each weight adds to the way at the end of
    each of `steps` actions, the system being linear in them."""
    dt, beta = 1 / (steps * substeps), alpha / 4
    places = np.arange(basis) / max(basis - 1, 1)
    centres = np.exp(-PHASE_RATE * places)
    sharpness = basis**1.5 / (centres * PHASE_RATE)
    y, velocity, goal = np.eye(3 + basis)[:3]
    x, rows = 1.0, []
    for k in range(1, steps * substeps + 1):
        psi = np.exp(-sharpness * (x - centres) ** 2)
        force = np.concatenate([np.zeros(3), x * psi / psi.sum()])
        acceleration = alpha * (beta * (goal - y) - velocity) + force
        y, velocity = y + dt * velocity, velocity + dt * acceleration
        x -= dt * PHASE_RATE * x
        if k % substeps == 0:
            rows.append(y)
    return np.stack(rows)
