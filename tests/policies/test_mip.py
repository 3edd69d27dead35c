"""MIP and the steps that lead to it: what each learns, and what sampling makes of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ulna.policies.contexts.context import Context
from ulna.policies.objectives.mip import MIP, TSD, StraightFlow
from ulna.policies.objectives.objective import Objective
from ulna.policies.sampler import sample
from ulna.policies.solvers.ddim import DDIM

CENTRE, SPREAD, T_STAR = 0.4, 0.3, 0.9


def context(rows: int) -> Context:
    return Context(torch.zeros(rows, 1, 1), torch.zeros(rows, 1))


def chunks(rows: int) -> Tensor:
    return CENTRE + SPREAD * torch.randn(rows, 4, 2, generator=torch.Generator().manual_seed(0))


class Ideal(nn.Module):
    """E[x | a] for data from N(0.4, 0.3²), where a is 0 at time 0 and else noised with 0.1. off: is added."""

    def __init__(self, alpha: float, off: float = 0.0) -> None:
        super().__init__()
        self.alpha, self.off = alpha, off
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        self.inputs.append(x)
        sigma = 1 - T_STAR
        gain = self.alpha * SPREAD**2 / (self.alpha**2 * SPREAD**2 + sigma**2)
        later = CENTRE + gain * (x - self.alpha * CENTRE)
        return torch.where(t[:, None, None] > 0, later, torch.full_like(x, CENTRE)) + self.off


class Says(nn.Module):
    """A network that answers `answer` whatever it is asked, and keeps what it was asked."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer, self.asked = answer, (torch.zeros(0), torch.zeros(0))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        assert torch.equal(s, t)
        self.asked = (x, t)
        return self.answer


@pytest.mark.parametrize(("form", "alpha"), [("paper", T_STAR), ("code", 1.0)])
def test_the_posterior_mean_is_mips_optimum_and_samples_the_mean(form: str, alpha: float) -> None:
    objective, a = MIP(T_STAR, form), chunks(4000)  # type: ignore[arg-type]
    draw = objective.draw(a, 0.0, torch.Generator().manual_seed(1))

    def loss(off: float) -> float:
        return float(objective.losses(Ideal(alpha, off), a, context(len(a)), draw).error.mean())

    first, second = SPREAD**2, 1 / (1 / SPREAD**2 + (alpha / (1 - T_STAR)) ** 2)
    weights = (1.0, 1.0) if form == "paper" else (1 / 0.81, 100.0)
    assert loss(0.0) == pytest.approx(weights[0] * first + weights[1] * second, rel=0.03)
    assert loss(0.0) < min(loss(0.05), loss(-0.05))

    net = Ideal(alpha)
    draws = [sample(net, objective, DDIM(), context(1), (1, 4, 2), 2, seed) for seed in (0, 1)]
    assert draws[0].nfe.tolist() == [2]
    assert torch.equal(draws[0].chunk, draws[1].chunk), "no noise"
    torch.testing.assert_close(draws[0].chunk, torch.full((1, 4, 2), CENTRE))
    assert not net.inputs[0].any(), "the first pass starts from zero"
    torch.testing.assert_close(net.inputs[1], torch.full((1, 4, 2), alpha * CENTRE))


def test_the_second_pass_of_mip_sharpens_an_average_of_two_modes() -> None:
    """Data at ±1, two thirds of them at +1: regression answers 1/3, which no datum is near."""

    class TwoModes(nn.Module):
        def forward(self, x: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
            tau = t[:, None, None]
            odds = 2 * torch.exp(2 * tau * x / (1 - tau) ** 2)  # of +1, given x = tau·a + (1 - tau)·z
            return torch.where(tau > 0, 1 - 2 / (1 + odds), torch.full_like(x, 1 / 3))

    chunk = sample(TwoModes(), MIP(), DDIM(), context(1), (1, 4, 2), 2, 0).chunk
    torch.testing.assert_close(chunk, torch.ones(1, 4, 2), atol=1e-6, rtol=0)


def test_each_step_of_the_ladder_has_its_own_inputs_and_targets() -> None:
    a = chunks(6)
    zero, late = torch.zeros(6), torch.full((6,), T_STAR)

    def check(objective: Objective, inputs: list[Tensor], targets: list[Tensor], times: list[Tensor]) -> None:
        net = Says(torch.cat(targets))
        losses = objective.losses(net, a, context(6), draw)
        assert losses.error.shape == a.shape
        assert not losses.error.any(), "its targets"
        torch.testing.assert_close(net.asked[0], torch.cat(inputs))
        torch.testing.assert_close(net.asked[1], torch.cat(times))
        wrong = objective.losses(Says(torch.cat(targets) + 0.5), a, context(6), draw)
        assert (wrong.error > 0.2).all()

    draw = MIP().draw(a, 0.0, torch.Generator().manual_seed(1))
    z = draw.noise
    between = T_STAR * a + (1 - T_STAR) * z
    check(MIP(), [torch.zeros_like(a), between], [a, a], [zero, late])
    check(MIP(form="code"), [torch.zeros_like(a), a + 0.1 * z], [a, a], [zero, late])
    check(TSD(), [z, between], [between, a], [zero, late])
    draw = StraightFlow().draw(a, 0.0, torch.Generator().manual_seed(1))
    check(StraightFlow(), [draw.noise], [a], [zero])


def test_a_teacher_takes_the_place_of_the_data() -> None:
    a, teacher = chunks(6), Ideal(T_STAR)
    for objective in (MIP(), StraightFlow(), TSD()):
        draw = objective.draw(a, 0.0, torch.Generator().manual_seed(1))
        error = objective.losses(Ideal(T_STAR), a, context(6), draw, teacher).error
        assert not error.any()


def test_tsd_hands_its_first_answer_to_the_second_pass() -> None:
    class Knows(nn.Module):
        """Of data that are 0.4 throughout."""

        def forward(self, x: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
            inputs.append(x)
            between = T_STAR * CENTRE + (1 - T_STAR) * inputs[0]
            if float(t[0]) == 0:
                return between
            torch.testing.assert_close(x, between)
            return torch.full_like(x, CENTRE)

    inputs: list[Tensor] = []
    sampled = sample(Knows(), TSD(), DDIM(), context(2), (2, 4, 2), 2, 3)
    assert sampled.nfe.tolist() == [2, 2]
    assert float(inputs[0].std()) > 0.5, "it starts from noise"
    torch.testing.assert_close(sampled.chunk, torch.full((2, 4, 2), CENTRE))


def test_straight_flow_is_one_pass_from_noise() -> None:
    net = Says(chunks(2))
    sampled = sample(net, StraightFlow(), DDIM(), context(2), (2, 4, 2), 1, 3)
    assert sampled.nfe.tolist() == [1, 1]
    assert float(net.asked[0].std()) > 0.5
    torch.testing.assert_close(sampled.chunk, net.answer)


@pytest.mark.parametrize(("objective", "steps"), [(MIP(), 2), (TSD(), 2), (StraightFlow(), 1)])
def test_passes_and_times_that_are_not_the_methods_are_refused(objective: Objective, steps: int) -> None:
    for wrong in (0, 3):
        with pytest.raises(ValueError, match=f"in {steps} step"):
            objective.path(wrong)
    for t_star in (0.0, 1.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            MIP(t_star)
        with pytest.raises(ValueError, match="between 0 and 1"):
            TSD(t_star)
