"""Solvers: where they land, how fast they converge, and that they are the published ones."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ulna.policies.contexts.context import Context
from ulna.policies.field import Field
from ulna.policies.objectives.diffusion import Diffusion
from ulna.policies.objectives.flow import Flow
from ulna.policies.objectives.objective import Objective
from ulna.policies.request import Request
from ulna.policies.sampler import sample
from ulna.policies.solvers.ddim import DDIM
from ulna.policies.solvers.dpm import DPM
from ulna.policies.solvers.heun import Heun
from ulna.policies.solvers.solver import Solver

CONTEXT = Context(torch.zeros(1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
CENTRE, SPREAD = 0.4, 0.3


class Gaussian(nn.Module):
    """The ideal network for data from N(0.4, 0.3²), whose every chunk is carried along a known curve."""

    def __init__(self, of: str) -> None:
        super().__init__()
        self.of = of

    def forward(self, x: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        x, t = x.double(), t.double()[:, None, None]
        alpha, sigma = t, 1 - t
        if self.of == "eps":
            c = 1 / (t**2 + (1 - t) ** 2).sqrt()
            alpha, sigma = c * t, c * (1 - t)
        variance = alpha**2 * SPREAD**2 + sigma**2
        eps = sigma / variance * (x - alpha * CENTRE)
        clean = CENTRE + alpha * SPREAD**2 / variance * (x - alpha * CENTRE)
        return eps if self.of == "eps" else clean - eps


def solve(objective: Objective, solver: Solver, of: str, steps: int) -> tuple[Tensor, Tensor]:
    """(where the chunks end, where the exact curve through their noise ends)."""
    sampled = sample(Gaussian(of), objective, solver, CONTEXT, (1, 64, 1), steps, 0, keep_chain=True)
    level, start = objective.path(steps)[0], sampled.chain[0][0]
    deviation = math.sqrt(level.alpha**2 * SPREAD**2 + level.sigma**2)
    exact = CENTRE + SPREAD * (start - level.alpha * CENTRE) / deviation
    return sampled.chunk, exact


@pytest.mark.parametrize(
    ("solver", "order"), [(DDIM(), 1), (Heun(), 2), (DPM(), 2)], ids=["DDIM", "Heun", "DPM"]
)
@pytest.mark.parametrize(("objective", "of"), [(Flow(), "velocity"), (Diffusion(1000), "eps")])
def test_a_solver_converges_at_its_order(solver: Solver, order: int, objective: Objective, of: str) -> None:
    errors = []
    for steps in (40, 80, 160):
        chunk, exact = solve(objective, solver, of, steps)
        errors.append(float((chunk - exact).abs().mean()))
    observed = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    # on diffusion's own levels the last step, of first order, weighs more
    least = order - 0.35 if isinstance(objective, Flow) else 0.8
    if isinstance(solver, DPM):  # levels even in tau are far from even in the log-ratio that it steps in
        least = 1.2 if isinstance(objective, Flow) else 0.8
    assert min(observed) > least, f"{errors}"
    if order == 2:
        first, exact = solve(objective, DDIM(), of, 80)
        assert errors[1] < 0.5 * float((first - exact).abs().mean())


@pytest.mark.parametrize("steps", [1, 3, 7, 16, 20, 33, 64, 99, 100])
@pytest.mark.parametrize("objective", [Flow(), Diffusion()])
def test_every_step_lands_on_the_next_level_of_the_path(objective: Objective, steps: int) -> None:
    """With a network that knows x and eps a chunk lies on `alpha·x + sigma·eps` at every level that it is
    asked at."""
    path = objective.path(steps)
    x, asked = 0.3, []

    class Knows(nn.Module):
        def forward(self, a: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
            i = len(asked)
            assert float(t[0]) == pytest.approx(path.tau[i], abs=1e-6)
            asked.append((a - path.alpha[i] * x) / path.sigma[i])
            return asked[-1] if isinstance(objective, Diffusion) else x - asked[-1]

    sampled = sample(Knows(), objective, DDIM(), CONTEXT, (1, 4, 2), steps, 0)
    for noise in asked:
        torch.testing.assert_close(noise, asked[0], atol=2e-3, rtol=0)
    torch.testing.assert_close(sampled.chunk, torch.full_like(sampled.chunk, x), atol=2e-4, rtol=0)


def test_eulers_method_on_the_straight_path() -> None:
    net = Gaussian("velocity")
    chunk = sample(net, Flow(), DDIM(), CONTEXT.repeat(2), (2, 4, 2), 10, 3).chunk
    field = Field(net, Flow(), Flow().path(10), CONTEXT.repeat(2), Request({}))
    a = sample(net, Flow(), DDIM(), CONTEXT.repeat(2), (2, 4, 2), 10, 3, keep_chain=True).chain[0][0]
    for i in range(10):
        a = a + 0.1 * field(a, i).velocity
    torch.testing.assert_close(chunk, a, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("eta", "steps"), [(0.0, 20), (0.0, 50), (1.0, 100)])
def test_ddim_is_diffusers_ddim_and_with_eta_1_its_ddpm(eta: float, steps: int) -> None:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    common = {
        "num_train_timesteps": 100,
        "beta_schedule": "squaredcos_cap_v2",
        "clip_sample": True,
        "prediction_type": "epsilon",
    }
    scheduler: Any = (
        DDPMScheduler(**common, variance_type="fixed_small")
        if eta
        else DDIMScheduler(**common, set_alpha_to_one=True, timestep_spacing="trailing")
    )
    scheduler.set_timesteps(steps)
    net, solver, objective = Gaussian("eps"), DDIM(eta, clip=1.0), Diffusion()
    field = Field(net, objective, objective.path(steps), CONTEXT, Request({}))
    ours = theirs = torch.randn(1, 8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for i, k in enumerate(scheduler.timesteps):
        move = solver.step(field, ours, i, None)
        rng = torch.Generator().manual_seed(i)
        pred = field(theirs, i)
        extra: dict[str, Any] = {} if eta else {"use_clipped_model_output": True}
        theirs = scheduler.step(pred.eps, k, theirs, generator=rng, **extra).prev_sample
        noise = torch.randn(ours.shape, generator=torch.Generator().manual_seed(i))
        ours = move.draw(noise)
    torch.testing.assert_close(ours, theirs, atol=2e-4 if eta else 1e-5, rtol=0)
