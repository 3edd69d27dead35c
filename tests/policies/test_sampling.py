"""Predictions, the sampler and its hooks, against a mixture whose answers are known exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ulna.policies.contexts.context import Context
from ulna.policies.hooks.hook import Hook, Start, Step
from ulna.policies.hooks.inpaint import Inpaint
from ulna.policies.objectives.diffusion import Diffusion
from ulna.policies.objectives.flow import Flow
from ulna.policies.objectives.objective import Objective, Path
from ulna.policies.objectives.regression import Regression
from ulna.policies.pred import Pred
from ulna.policies.sampler import sample

MEANS, WIDTHS, WEIGHTS = torch.tensor([-0.6, 0.7]), torch.tensor([0.10, 0.15]), torch.tensor([0.3, 0.7])
DOUBLE = torch.float64


def posterior(a: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """E[x | a] and the log density of a, for x from the mixture and a = alpha x + sigma eps; elementwise."""
    m, s, w = (v.to(a) for v in (MEANS, WIDTHS, WEIGHTS))
    alpha, sigma = alpha[..., None], sigma[..., None]  # an axis for the mixture's parts
    variance = alpha**2 * s**2 + sigma**2
    log_parts = (
        w.log() - 0.5 * (a[..., None] - alpha * m) ** 2 / variance - 0.5 * (2 * torch.pi * variance).log()
    )
    within = m + alpha * s**2 / variance * (a[..., None] - alpha * m)
    return (log_parts.softmax(-1) * within).sum(-1), log_parts.logsumexp(-1)


class Ideal(nn.Module):
    """The network that training would converge to; `of` says which output the objective wants."""

    def __init__(self, of: str) -> None:
        super().__init__()
        self.of, self.calls = of, 0

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        self.calls += 1
        tau = t[:, None, None].clamp(1e-6, 1 - 1e-6)
        if self.of == "eps":  # the variance-preserving path through the same tau
            c = 1 / (tau**2 + (1 - tau) ** 2).sqrt()
            clean, _ = posterior(x_BHA, c * tau, c * (1 - tau))
            return (x_BHA - c * tau * clean) / (c * (1 - tau))
        clean, _ = posterior(x_BHA, tau, 1 - tau)
        return clean if self.of == "x" else (clean - x_BHA) / (1 - tau)


CONTEXT = Context(torch.zeros(1, 1, 1), torch.zeros(1, 1))
IDEALS: list[tuple[Objective, str, int]] = [
    (Flow(), "velocity", 40),
    (Flow(predict="x"), "x", 40),
    (Diffusion(sampler="ddim"), "eps", 50),
    (Diffusion(sampler="ddpm"), "eps", 100),
]


@pytest.mark.parametrize("level", [0.02, 0.3, 0.5, 0.9])
def test_the_four_views_agree_with_the_analytic_mixture(level: float) -> None:
    a = torch.linspace(-2, 2, 41, dtype=DOUBLE).requires_grad_()
    alpha, sigma = torch.tensor(level, dtype=DOUBLE), torch.tensor(1 - level, dtype=DOUBLE)
    clean, log_density = posterior(a, alpha, sigma)
    (score,) = torch.autograd.grad(log_density.sum(), a)
    a, clean = a.detach(), clean.detach()
    noise = (a - alpha * clean) / sigma
    for pred in (
        Pred.from_x(a, alpha, sigma, clean),
        Pred.from_eps(a, alpha, sigma, noise),
        Pred.from_velocity(a, alpha, clean - noise),
    ):
        torch.testing.assert_close(pred.x, clean)
        torch.testing.assert_close(pred.eps, noise)
        torch.testing.assert_close(pred.score, score, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(pred.velocity, clean - noise)
        torch.testing.assert_close(pred.tau, alpha)


def test_a_tilt_is_the_mixture_reweighted() -> None:
    """exp(w·Q) with Q linear in a shifts the score by a constant; every view must follow by its own
    factor."""
    a = torch.linspace(-1, 1, 9, dtype=DOUBLE)
    tau = torch.tensor(0.4, dtype=DOUBLE)
    clean, _ = posterior(a, tau, 1 - tau)
    pred = Pred.from_x(a, tau, 1 - tau, clean)
    tilted = pred.tilt(torch.ones_like(a), 0.5)
    torch.testing.assert_close(tilted.score, pred.score + 0.5)
    torch.testing.assert_close(tilted.velocity, pred.velocity + (1 - tau) / tau * 0.5)
    torch.testing.assert_close(tilted.alpha * tilted.x + tilted.sigma * tilted.eps, a)


@pytest.mark.parametrize(("objective", "of", "steps"), IDEALS)
def test_sampling_with_the_ideal_network_gives_the_mixture(objective: Objective, of: str, steps: int) -> None:
    net = Ideal(of)
    draw = sample(net, objective, CONTEXT, (1, 64, 64), steps, seed=0)
    x = draw.chunk.flatten()
    assert draw.nfe == net.calls == steps
    high = x > 0
    assert high.float().mean() == pytest.approx(0.7, abs=0.03)
    # few steps widen or narrow the modes a little; where they lie is what counts
    assert x[high].mean() == pytest.approx(0.7, abs=0.03)
    assert x[~high].mean() == pytest.approx(-0.6, abs=0.03)
    assert 0.08 < x[high].std() < 0.22


def test_regression_gives_the_mean_in_one_pass() -> None:
    net = Ideal("x")
    draw = sample(net, Regression(), CONTEXT, (1, 2, 3), 1, seed=0)
    assert draw.nfe == 1
    torch.testing.assert_close(
        draw.chunk, torch.full((1, 2, 3), float((MEANS * WEIGHTS).sum())), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(("objective", "of", "steps"), IDEALS)
def test_hooks_that_do_nothing_change_no_bit(objective: Objective, of: str, steps: int) -> None:
    base = sample(Ideal(of), objective, CONTEXT, (3, 4, 2), steps, seed=5).chunk
    assert torch.equal(
        base, sample(Ideal(of), objective, CONTEXT, (3, 4, 2), steps, 5, [Hook(), Hook()]).chunk
    )
    assert not torch.equal(base, sample(Ideal(of), objective, CONTEXT, (3, 4, 2), steps, 6).chunk)


@pytest.mark.parametrize(("objective", "of", "steps"), [*IDEALS, (Regression(), "x", 1)])
def test_inpainting_ends_on_the_known_prefix(objective: Objective, of: str, steps: int) -> None:
    prefix = torch.tensor([[0.7, -0.6], [0.7, -0.6]])
    draw = sample(Ideal(of), objective, CONTEXT, (3, 8, 2), steps, 1, [Inpaint(prefix)]).chunk
    torch.testing.assert_close(draw[:, :2], prefix.expand(3, 2, 2), atol=1e-6, rtol=0)
    free = sample(Ideal(of), objective, CONTEXT, (3, 8, 2), steps, 1).chunk
    assert torch.isfinite(draw).all()
    if steps > 1:
        assert not torch.allclose(free[:, :2], prefix.expand(3, 2, 2), atol=1e-3)
    with pytest.raises(ValueError, match="prefix has 9"):
        sample(Ideal(of), objective, CONTEXT, (1, 8, 2), steps, 1, [Inpaint(torch.zeros(9, 2))])


@dataclass(frozen=True)
class Candidates(Hook):
    """H1: N candidates from the hook's own stream."""

    n: int

    def initialise(self, start: Start, path: Path, rng: torch.Generator) -> Start:
        more = torch.randn((len(start.a), self.n - 1, *start.a.shape[1:]), generator=rng)
        noise = torch.cat([start.noise[:, None], more], dim=1).flatten(0, 1)
        return Start(noise, noise, 0, self.n)


@dataclass(frozen=True)
class Nearest(Hook):
    """H5: the candidate nearest to `to`; those on the wrong side of 0 are ruled out."""

    to: float

    def score(self, chunks_BNHA: Tensor, context: Context) -> Tensor:
        mean = chunks_BNHA.mean((2, 3))
        return torch.where(mean * self.to > 0, -(mean - self.to).abs(), -torch.inf)


@dataclass(frozen=True)
class Guide(Hook):
    """H2: tilt towards greater values."""

    weight: float

    def transform(self, pred: Pred, step: Step, context: Context, rng: torch.Generator) -> Pred:
        return pred if step.i == 0 else pred.tilt(torch.ones_like(pred.a), self.weight)


@pytest.mark.parametrize("to", [-0.6, 0.7])
def test_the_best_candidate_is_chosen(to: float) -> None:
    draw = sample(Ideal("velocity"), Flow(), CONTEXT, (5, 1, 1), 20, 0, [Candidates(24), Nearest(to)])
    assert draw.nfe == 20 * 24
    assert (draw.chunk - to).abs().max() < 0.25


@pytest.mark.parametrize(("objective", "of", "steps"), IDEALS)
def test_guidance_moves_mass_to_the_better_mode(objective: Objective, of: str, steps: int) -> None:
    shape = (1, 32, 32)
    plain = (sample(Ideal(of), objective, CONTEXT, shape, steps, 0).chunk > 0).float().mean()
    guided = (sample(Ideal(of), objective, CONTEXT, shape, steps, 0, [Guide(0.5)]).chunk > 0).float().mean()
    assert guided > plain + 0.05


def test_a_hooks_stream_is_its_own() -> None:
    draws: list[float] = []

    @dataclass(frozen=True)
    class Draws(Hook):
        def project(self, a: Tensor, step: Step, rng: torch.Generator) -> Tensor:
            draws.append(float(torch.rand((), generator=rng)))
            return a

    base = sample(Ideal("eps"), Diffusion(sampler="ddpm"), CONTEXT, (1, 2, 2), 100, 3).chunk
    again = sample(Ideal("eps"), Diffusion(sampler="ddpm"), CONTEXT, (1, 2, 2), 100, 3, [Draws()]).chunk
    assert torch.equal(base, again), "what a hook draws never changes the base sampler's noise"
    assert len(np.unique(draws)) == 100


def test_more_steps_than_trained_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.\.100"):
        sample(Ideal("eps"), Diffusion(), CONTEXT, (1, 1, 1), 101, 0)
