"""Predictions, the sampler and its hooks, against a mixture whose answers are known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ulna.policies.contexts.context import Context
from ulna.policies.field import Field
from ulna.policies.hooks.hook import Hook
from ulna.policies.hooks.inpaint import Inpaint
from ulna.policies.objectives.diffusion import Diffusion
from ulna.policies.objectives.edm import EDM
from ulna.policies.objectives.flow import Flow
from ulna.policies.objectives.objective import Objective
from ulna.policies.objectives.regression import Regression
from ulna.policies.pred import Pred
from ulna.policies.request import Request
from ulna.policies.sampler import Sampled
from ulna.policies.sampler import sample as sample_with
from ulna.policies.solvers.ddim import DDIM
from ulna.policies.solvers.dpm import DPM
from ulna.policies.solvers.heun import Heun
from ulna.policies.solvers.solver import Solver

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
        if self.of == "edm":  # with a deviation of 0.5, and the input scaled
            sigma = (1 - tau) / tau
            both = sigma**2 + 0.25
            noisy = x_BHA * both.sqrt()
            clean, _ = posterior(noisy, torch.ones_like(sigma), sigma)
            return (clean - 0.25 / both * noisy) / (sigma * 0.5 / both.sqrt())
        if self.of in ("eps", "clean", "v"):  # the variance-preserving path through the same tau
            alpha, sigma = (x / (tau**2 + (1 - tau) ** 2).sqrt() for x in (tau, 1 - tau))
            clean, _ = posterior(x_BHA, alpha, sigma)
            noise = (x_BHA - alpha * clean) / sigma
            return {"eps": noise, "clean": clean, "v": alpha * noise - sigma * clean}[self.of]
        clean, _ = posterior(x_BHA, tau, 1 - tau)
        return clean if self.of == "x" else (clean - x_BHA) / (1 - tau)


CONTEXT = Context(torch.zeros(1, 1, 1), torch.zeros(1, 1))
EULER, DDIM1, DDPM = DDIM(), DDIM(clip=1.0), DDIM(eta=1.0, clip=1.0)
IDEALS: list[tuple[Objective, Solver, str, int]] = [
    (Flow(), EULER, "velocity", 40),
    (Flow(predict="x"), EULER, "x", 40),
    (Flow(), Heun(), "velocity", 20),
    (Flow(), DPM(), "velocity", 20),
    (Flow(), DDIM(eta=1.0), "velocity", 100),
    (EDM(sigma_min=0.02, sigma_max=20.0), EULER, "edm", 60),
    (EDM(sigma_min=0.02, sigma_max=20.0), Heun(), "edm", 30),
    (Diffusion(), DDIM1, "eps", 50),
    (Diffusion(predict="x"), DDIM1, "clean", 50),
    (Diffusion(predict="v"), DDIM1, "v", 50),
    (Diffusion(), Heun(), "eps", 20),
    (Diffusion(), DPM(), "eps", 20),
    (Diffusion(), DDPM, "eps", 100),
]
EACH = pytest.mark.parametrize(("objective", "solver", "of", "steps"), IDEALS)


def sample(
    net: nn.Module,
    objective: Objective,
    solver: Solver,
    shape: tuple[int, int, int],
    steps: int,
    seed: int | list[int] = 0,
    hooks: Sequence[Hook] = (),
    **more: Any,
) -> Sampled:
    context = CONTEXT.repeat(shape[0])
    return sample_with(net, objective, solver, context, shape, steps, seed, hooks, **more)


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


@given(st.floats(0, 1), st.floats(-3, 3))
def test_guidance_is_finite_at_every_level_and_keeps_the_chunk(tau: float, push: float) -> None:
    a = torch.linspace(-2, 2, 9, dtype=DOUBLE)
    level = torch.tensor(tau, dtype=DOUBLE)
    for pred in (
        Pred.from_velocity(a, level, torch.sin(a)),
        Pred.from_x(a, level, (1 - level**2).sqrt(), torch.cos(a)),
    ):
        moved = pred.push(torch.full_like(a, push))
        assert torch.isfinite(moved.x).all()
        assert torch.isfinite(moved.eps).all()
        torch.testing.assert_close(moved.velocity, pred.velocity + push)
        torch.testing.assert_close(
            moved.alpha * moved.x + moved.sigma * moved.eps, pred.alpha * pred.x + pred.sigma * pred.eps
        )
        assert torch.isfinite(pred.tilt(torch.ones_like(a), push).x).all()


@EACH
def test_sampling_with_the_ideal_network_gives_the_mixture(
    objective: Objective, solver: Solver, of: str, steps: int
) -> None:
    net = Ideal(of)
    sampled = sample(net, objective, solver, (1, 64, 64), steps)
    x = sampled.chunk.flatten()
    assert sampled.nfe.tolist() == [net.calls]
    assert net.calls == (2 * steps - 1 if isinstance(solver, Heun) else steps), "a Heun step asks twice"
    high = x > 0
    assert high.float().mean() == pytest.approx(0.7, abs=0.03)
    # few steps widen or narrow the modes a little; where they lie is what counts
    assert x[high].mean() == pytest.approx(0.7, abs=0.03)
    assert x[~high].mean() == pytest.approx(-0.6, abs=0.03)
    assert 0.08 < x[high].std() < 0.22


def test_regression_gives_the_mean_in_one_pass() -> None:
    sampled = sample(Ideal("x"), Regression(), EULER, (1, 2, 3), 1)
    assert sampled.nfe.tolist() == [1]
    torch.testing.assert_close(
        sampled.chunk, torch.full((1, 2, 3), float((MEANS * WEIGHTS).sum())), atol=1e-4, rtol=0
    )


@EACH
def test_hooks_that_do_nothing_change_no_bit(
    objective: Objective, solver: Solver, of: str, steps: int
) -> None:
    base = sample(Ideal(of), objective, solver, (3, 4, 2), steps, 5).chunk
    same = sample(Ideal(of), objective, solver, (3, 4, 2), steps, 5, [Hook(), Hook()]).chunk
    assert torch.equal(base, same)
    assert not torch.equal(base, sample(Ideal(of), objective, solver, (3, 4, 2), steps, 6).chunk)


@EACH
def test_a_row_with_a_seed_of_its_own_does_not_depend_on_its_neighbours(
    objective: Objective, solver: Solver, of: str, steps: int
) -> None:
    together = sample(Ideal(of), objective, solver, (3, 4, 2), steps, [7, 8, 9]).chunk
    alone = [sample(Ideal(of), objective, solver, (1, 4, 2), steps, seed).chunk for seed in (7, 8, 9)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="2 seeds for 3 observations"):
        sample(Ideal(of), objective, solver, (3, 4, 2), steps, [7, 8])


@dataclass(frozen=True)
class Known:
    """A policy whose actions are what the network sees."""

    def normalise_past(self, past_BdA: Tensor, observation: object) -> Tensor:
        return past_BdA


@pytest.mark.parametrize(("objective", "solver", "of", "steps"), [*IDEALS, (Regression(), EULER, "x", 1)])
def test_inpainting_ends_on_what_was_sent(objective: Objective, solver: Solver, of: str, steps: int) -> None:
    sent = torch.tensor([[0.7, -0.6], [0.7, -0.6]]).expand(3, 2, 2)

    def draw(past: Tensor | None) -> Tensor:
        return sample(
            Ideal(of), objective, solver, (3, 8, 2), steps, 1, [Inpaint()],
            request=Request({}, past=past), policy=Known(),
        ).chunk  # fmt: skip

    held = draw(sent)
    torch.testing.assert_close(held[:, :2], sent, atol=1e-6, rtol=0)
    assert torch.isfinite(held).all()
    free = sample(Ideal(of), objective, solver, (3, 8, 2), steps, 1).chunk
    assert torch.equal(draw(None), free), "without a past the chunk is drawn freely"
    with pytest.raises(ValueError, match="prefix has 9"):
        draw(torch.zeros(3, 9, 2))


@dataclass(frozen=True)
class Nearest(Hook):
    """H5: the candidate nearest to `to` of n; those on the wrong side of 0 are ruled out."""

    to: float
    n: int = 24

    @property
    def wants_candidates(self) -> int:
        return self.n

    def score(self, chunks_BNHA: Tensor, field: Field) -> Tensor:
        mean = chunks_BNHA.mean((2, 3))
        return torch.where(mean * self.to > 0, -(mean - self.to).abs(), -torch.inf)


@dataclass(frozen=True)
class Guide(Hook):
    """H2: tilt towards greater values."""

    weight: float

    def guide(self, field: Field, rng: torch.Generator) -> Field:
        def belief(a: Tensor, i: int, context: Context, rows: Tensor | None) -> Pred:
            return field(a, i, context, rows=rows).push(torch.full_like(a, self.weight))

        return field.with_belief(belief)


@pytest.mark.parametrize("to", [-0.6, 0.7])
def test_the_best_candidate_is_chosen(to: float) -> None:
    sampled = sample(Ideal("velocity"), Flow(), EULER, (5, 1, 1), 20, 0, [Nearest(to)])
    assert sampled.nfe.tolist() == [20 * 24] * 5
    assert (sampled.chunk - to).abs().max() < 0.25
    assert sampled.candidates.shape == (5, 24, 1, 1)
    best = sampled.scores.argmax(1)  # type: ignore[union-attr]
    assert torch.equal(sampled.candidates[torch.arange(5), best], sampled.chunk)


def test_hooks_share_candidates_and_the_first_is_what_would_be_drawn_alone() -> None:
    alone = sample(Ideal("velocity"), Flow(), EULER, (2, 4, 1), 10, 3).chunk
    few = sample(Ideal("velocity"), Flow(), EULER, (2, 4, 1), 10, 3, [Nearest(0.7, 4)])
    both = sample(Ideal("velocity"), Flow(), EULER, (2, 4, 1), 10, 3, [Nearest(0.7, 4), Nearest(0.6, 9)])
    assert both.candidates.shape[1] == 9
    torch.testing.assert_close(few.candidates[:, 0], alone, atol=1e-6, rtol=0)
    torch.testing.assert_close(both.candidates[:, 0], alone, atol=1e-6, rtol=0)


@EACH
def test_guidance_moves_mass_to_the_better_mode(
    objective: Objective, solver: Solver, of: str, steps: int
) -> None:
    plain = (sample(Ideal(of), objective, solver, (1, 32, 32), steps).chunk > 0).float().mean()
    guided = (
        (sample(Ideal(of), objective, solver, (1, 32, 32), steps, 0, [Guide(0.5)]).chunk > 0).float().mean()
    )
    assert guided > plain + 0.05


def test_a_hooks_stream_is_its_own() -> None:
    draws: list[float] = []

    @dataclass(frozen=True)
    class Draws(Hook):
        def project(self, a: Tensor, i: int, field: Field, rng: torch.Generator) -> Tensor:
            draws.append(float(torch.rand((), generator=rng)))
            return a

    base = sample(Ideal("eps"), Diffusion(), DDPM, (1, 2, 2), 100, 3).chunk
    again = sample(Ideal("eps"), Diffusion(), DDPM, (1, 2, 2), 100, 3, [Draws()]).chunk
    assert torch.equal(base, again), "what a hook draws never changes the base sampler's noise"
    assert len(np.unique(draws)) == 100


def test_a_guide_asks_again_differentiates_and_is_counted() -> None:
    slopes: list[float] = []

    @dataclass(frozen=True)
    class Differentiates(Hook):
        def guide(self, field: Field, rng: torch.Generator) -> Field:
            def belief(a: Tensor, i: int, context: Context, rows: Tensor | None) -> Pred:
                with torch.enable_grad():
                    at = a.detach().requires_grad_()
                    pred = field(at, i, grad=True)
                    (slope,) = torch.autograd.grad(pred.x.sum(), at)
                slopes.append(float(slope.mean()))
                return field(a, i, context, rows=rows)

            return field.with_belief(belief)

    net = Ideal("velocity")
    sampled = sample(net, Flow(), EULER, (2, 4, 3), 10, 0, [Differentiates()])
    assert net.calls == 20
    assert sampled.nfe.tolist() == [20, 20]
    assert len(slopes) == 10
    assert max(map(abs, slopes)) > 0
    base = sample(Ideal("velocity"), Flow(), EULER, (2, 4, 3), 10, 0).chunk
    torch.testing.assert_close(sampled.chunk, base)


def test_a_refinement_may_sample_again_from_a_noisier_level() -> None:
    levels: list[int] = []

    @dataclass(frozen=True)
    class Again(Hook):
        def refine(self, a: Tensor, field: Field, rng: torch.Generator) -> Tensor:
            level = field.path[5]
            noise = torch.randn(a.shape, generator=rng)
            levels.append(5)
            return field.sample_from(level.alpha * a + level.sigma * noise, 5)

    sampled = sample(Ideal("velocity"), Flow(), EULER, (1, 32, 32), 10, 0, [Again()])
    assert sampled.nfe.tolist() == [15]
    assert levels == [5]
    x = sampled.chunk
    assert x[x > 0].mean() == pytest.approx(0.7, abs=0.05)


def test_the_chain_replays_and_its_log_probabilities_are_the_gaussians() -> None:
    sampled = sample(Ideal("eps"), Diffusion(), DDPM, (2, 3, 2), 20, 4, keep_chain=True)
    assert len(sampled.chain) == 20
    befores = [a for a, _ in sampled.chain] + [sampled.chunk]
    for (_, move), after in zip(sampled.chain, befores[1:], strict=True):
        if move.std:
            expected = torch.distributions.Normal(move.mean, move.std).log_prob(after).flatten(1).sum(1)
            torch.testing.assert_close(move.log_prob(after), expected)
        else:
            torch.testing.assert_close(move.mean, after)
            with pytest.raises(ValueError, match="deterministic"):
                move.log_prob(after)


def test_gradients_pass_through_the_steps_on_request() -> None:
    net = nn.Linear(1, 1)

    class Net(nn.Module):
        def forward(self, x: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
            return net(x)

    chunk = sample(Net(), Flow(), EULER, (1, 4, 1), 5, grad=True).chunk
    chunk.sum().backward()
    assert net.weight.grad is not None
    assert net.weight.grad.abs() > 0
    assert not sample(Net(), Flow(), EULER, (1, 4, 1), 5).chunk.requires_grad


def test_more_steps_than_trained_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.\.100"):
        sample(Ideal("eps"), Diffusion(), EULER, (1, 1, 1), 101)
    for solver in (Heun(), DPM()):
        with pytest.raises(ValueError, match="deterministic"):
            sample(Ideal("x"), Regression(), solver, (1, 1, 1), 1)


@pytest.mark.parametrize("predict", ["velocity", "x"])
def test_the_chunks_loss_is_the_velocitys_by_the_noise_that_is_left(predict: Any) -> None:
    a = torch.randn(64, 2, 3, generator=torch.Generator().manual_seed(0))
    by_velocity, by_chunk = Flow(predict=predict), Flow(predict=predict, loss="x")
    draw = by_velocity.draw(a, 0.0, torch.Generator().manual_seed(1))
    draw = replace(draw, tau=0.9 * draw.tau)  # near 1 the velocity of an x is bounded
    errors = [o.losses(Constant(), a, CONTEXT.repeat(64), draw).error for o in (by_velocity, by_chunk)]
    assert errors[1].mean() > 0.1
    torch.testing.assert_close(errors[1], (1 - draw.tau)[:, None, None] ** 2 * errors[0])
    assert not by_chunk.losses(Constant(), a, CONTEXT.repeat(64), draw, teacher=Constant()).error.any()


def test_edms_noise_is_besos() -> None:
    """Log-spaced from the most to the least, then none; drawn within the range, as often below the median as
    above where the cut is even; and a clean chunk has no loss."""
    edm = EDM(0.01, 1.0, middle=0.1)
    path = edm.path(3)
    assert path.sigma == pytest.approx((1.0, 0.1, 0.01, 0.0))
    assert path.alpha == (1.0,) * 4
    assert path.tau == pytest.approx((0.5, 1 / 1.1, 1 / 1.01, 1.0))
    draw = edm.draw(torch.zeros(4000, 1, 1), 0.0, torch.Generator().manual_seed(0))
    sigma = draw.more["sigma"]
    assert sigma.min() >= 0.01
    assert sigma.max() <= 1.0
    assert (sigma < 0.1).float().mean() == pytest.approx(0.5, abs=0.03)
    a = MEANS.repeat(2000)[:, None, None]
    context = CONTEXT.repeat(len(a))
    loss = edm.losses(Ideal("edm"), a, context, draw).error.mean()
    assert loss < edm.losses(Constant(), a, context, draw).error.mean()
    with pytest.raises(ValueError, match="below its sigma_max"):
        EDM(2.0, 1.0)


class Constant(nn.Module):
    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        return torch.zeros_like(x_BHA)
