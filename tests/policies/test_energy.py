"""Chunks as minima of an energy: the descent, its training, and what it costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ulna.policies.backbones.backbone import Sizes
from ulna.policies.backbones.energy import Energy
from ulna.policies.backbones.mlp import ResidualMLP
from ulna.policies.backbones.transformer import Transformer
from ulna.policies.contexts.context import Context
from ulna.policies.field import Field
from ulna.policies.hooks.hook import Hook
from ulna.policies.hooks.lowest_energy import LowestEnergy
from ulna.policies.objectives.ebt import EBT
from ulna.policies.objectives.flow import Flow
from ulna.policies.objectives.objective import Draw
from ulna.policies.pred import Pred
from ulna.policies.sampler import Sampled, sample
from ulna.policies.solvers.ddim import DDIM
from ulna.policies.solvers.energy_descent import EnergyDescent
from ulna.policies.solvers.solver import Solver

DOUBLE = torch.float64
PLAIN = EBT()
SIZES = Sizes(action_dim=2, horizon=4, token_width=3, pooled_width=3)


class Bowl(nn.Module):
    """E = mean over the elements of ½ c (a - m)², with m and c of each row in the context."""

    def forward(self, x: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        m, c = context.pooled[:, 0, None, None], context.pooled[:, 1]
        return 0.5 * c * ((x - m) ** 2).flatten(1).mean(1)


def context_of(minima: list[float], curvatures: list[float]) -> Context:
    pooled = torch.tensor([minima, curvatures], dtype=DOUBLE).T
    return Context(pooled[:, None], pooled)


def descend(
    minima: list[float], curvatures: list[float], solver: Solver, steps: int = 60, **more: object
) -> Sampled:
    context = context_of(minima, curvatures)
    seeds = [*range(len(minima))]
    return sample(Bowl(), PLAIN, solver, context, (len(minima), 4, 2), steps, seeds, **more)  # type: ignore[arg-type]


def test_each_row_descends_to_its_minimum_and_stops_by_itself() -> None:
    # on curvature 1 a step without momentum is Newton's: two evaluations, of which the second sees no slope
    solver = EnergyDescent(momentum=0.0, tolerance=1e-3)
    sampled = descend([0.3, -0.5, 0.8], [1.0, 0.5, 0.1], solver)
    nfe = sampled.nfe.tolist()
    assert nfe[0] == 2
    assert 5 < nfe[1] < 15, "halves the distance at every step"
    assert 30 < nfe[2] < 60
    for row, (m, curvature) in enumerate([(0.3, 1.0), (-0.5, 0.5), (0.8, 0.1)]):
        assert (sampled.chunk[row] - m).abs().max() < 1e-2 / curvature * 0.5


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    minima, curvatures = [0.3, -0.5, 0.8], [0.9, 0.5, 0.2]
    together = descend(minima, curvatures, EnergyDescent(tolerance=1e-3))
    for row in range(3):
        context = context_of(minima[row : row + 1], curvatures[row : row + 1])
        alone = sample(Bowl(), PLAIN, EnergyDescent(tolerance=1e-3), context, (1, 4, 2), 60, [row])
        torch.testing.assert_close(alone.chunk[0], together.chunk[row])
        assert alone.nfe[0] == together.nfe[row]


def test_without_a_tolerance_all_steps_are_taken() -> None:
    sampled = descend([0.3, -0.5], [1.0, 0.2], EnergyDescent(momentum=0.0, tolerance=0.0), steps=7)
    assert sampled.nfe.tolist() == [7, 7]


def test_momentum_is_nesterovs() -> None:
    chain = descend([0.4], [0.3], EnergyDescent(momentum=0.8, tolerance=0.0), 12, keep_chain=True).chain
    a, v = chain[0][0], torch.zeros(1, 4, 2, dtype=DOUBLE)
    for before, _ in chain:
        torch.testing.assert_close(before.double(), a.double())
        slope = 0.3 * (a + 0.8 * v - 0.4)
        v = 0.8 * v - slope
        a = a + v


def test_the_descent_is_that_of_exp_E_where_asked() -> None:
    net, a = Bowl(), torch.randn(2, 4, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    context = context_of([0.1, -0.2], [0.7, 1.3])
    objective = EBT(exponential=True, step_size=0.5)
    pred = objective.believe(net, a, objective.path(3)[0], context)
    energy = net(a, a[:, 0, 0], a[:, 0, 0], context)
    slope = (context.pooled[:, 1] * energy.exp())[:, None, None] * (a - context.pooled[:, 0, None, None])
    torch.testing.assert_close(pred.velocity, -0.5 * slope)
    torch.testing.assert_close(pred.alpha * pred.x + pred.sigma * pred.eps, a)


def test_ddim_on_an_energy_is_plain_descent_and_guidance_adds_to_the_step() -> None:
    plain = descend([0.3], [0.5], EnergyDescent(momentum=0.0, tolerance=0.0), 5).chunk
    torch.testing.assert_close(descend([0.3], [0.5], DDIM(), 5).chunk, plain)

    class Push(Hook):
        def guide(self, field: Field, rng: torch.Generator) -> Field:
            def belief(a: Tensor, i: int, context: Context, rows: Tensor | None) -> Pred:
                return field(a, i, context, rows=rows).push(torch.full_like(a, 0.05))

            return field.with_belief(belief)

    pushed = descend([0.3], [0.5], EnergyDescent(momentum=0.0, tolerance=1e-4), 60, hooks=[Push()])
    torch.testing.assert_close(pushed.chunk, torch.full_like(pushed.chunk, 0.4), atol=1e-3, rtol=0)


@pytest.mark.parametrize("inner", [ResidualMLP(16, 1, 8), Transformer(width=16, depth=1, heads=2)])
@pytest.mark.parametrize("settings", [{"exponential": True}, {"every_step": True, "start": "path"}])
def test_the_gradient_of_the_loss_is_that_of_finite_differences(inner, settings) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    # one step, so that nothing is detached that the differences would see
    objective = EBT(steps=1, more_steps=0, **settings)
    net = Energy(inner).build(SIZES, objective.needs).double().eval()
    pooled = torch.randn(3, 3, dtype=DOUBLE)
    context, target = Context(pooled[:, None], pooled), torch.randn(3, 4, 2, dtype=DOUBLE)
    draw = objective.draw(target, 0.0, torch.Generator().manual_seed(1))

    def loss() -> Tensor:
        return objective.losses(net, target, context, draw).error.mean()

    loss().backward()
    checked = 0
    for parameter in net.parameters():
        if parameter.grad is None:
            continue
        flat, i = parameter.data.view(-1), int(parameter.grad.abs().argmax())
        value = float(flat[i])
        sides = []
        for h in (1e-5, -1e-5):
            flat[i] = value + h
            sides.append(float(loss().detach()))
        flat[i] = value
        slope = (sides[0] - sides[1]) / 2e-5
        assert float(parameter.grad.view(-1)[i]) == pytest.approx(slope, rel=2e-3, abs=1e-7)
        checked += abs(slope) > 1e-6
    assert checked > 5


def test_steps_are_detached_from_each_other_and_the_draw_replays() -> None:
    torch.manual_seed(0)
    objective = EBT(steps=3, more_steps=2)
    net = Energy(ResidualMLP(16, 1, 8)).build(SIZES, objective.needs)
    context, target = Context(torch.randn(2, 1, 3), torch.randn(2, 3)), torch.randn(2, 4, 2)
    draw = objective.draw(target, 0.0, torch.Generator().manual_seed(0))
    once, again = (objective.losses(net, target, context, draw).error for _ in range(2))
    assert torch.equal(once, again)
    with torch.no_grad():
        without = objective.losses(net, target, context, draw).error
    torch.testing.assert_close(without, once.detach())
    assert not without.requires_grad
    half = Draw(draw.noise[:1], draw.tau[:1], {k: v[:1] for k, v in draw.more.items()})
    torch.testing.assert_close(
        objective.losses(net, target[:1], context.take(torch.tensor([0])), half).error, once[:1]
    )


def test_training_digs_a_minimum_that_a_new_noise_falls_into() -> None:
    torch.manual_seed(0)
    objective = EBT(steps=2, more_steps=1, momentum=0.5)
    net = Energy(ResidualMLP(32, 1, 8)).build(SIZES, objective.needs)
    pooled = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    target = torch.stack([torch.full((4, 2), 0.5), torch.full((4, 2), -0.5)])
    context = Context(pooled[:, None], pooled)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        draw = objective.draw(target.repeat(8, 1, 1), 0.0, None)
        many = Context(context.tokens.repeat(8, 1, 1), pooled.repeat(8, 1))
        objective.losses(net, target.repeat(8, 1, 1), many, draw).error.mean().backward()
        optimizer.step()
    sampled = sample(net, objective, EnergyDescent(momentum=0.5), context, (2, 4, 2), 20, 3)
    assert (sampled.chunk - target).abs().max() < 0.15
    low = objective.energy(net, target, context)
    assert bool((low < objective.energy(net, target.flip(0), context)).all())


def test_the_lowest_energy_survives_and_each_score_is_an_evaluation() -> None:
    context = context_of([0.3, -0.5], [1.0, 1.0])
    solver = EnergyDescent(momentum=0.0, rate=0.1, tolerance=0.0)
    sampled = sample(Bowl(), PLAIN, solver, context, (2, 4, 2), 3, [0, 1], [LowestEnergy(5)])
    assert sampled.nfe.tolist() == [20, 20]
    distance = ((sampled.candidates - torch.tensor([0.3, -0.5])[:, None, None, None]) ** 2).mean((2, 3))
    assert torch.equal(distance.argmin(1), sampled.scores.argmax(1))  # type: ignore[union-attr]
    torch.testing.assert_close(sampled.chunk, sampled.candidates[[0, 1], distance.argmin(1)])
    shuffled = sample(Bowl(), PLAIN, solver, context, (2, 4, 2), 3, [0, 1], [LowestEnergy(5, shuffled=True)])
    torch.testing.assert_close(shuffled.scores, sampled.scores.flip(0))  # type: ignore[union-attr]


def test_what_has_no_energy_is_refused_by_a_sentence() -> None:
    with pytest.raises(ValueError, match="a backbone that gives an energy, and ResidualMLP gives a chunk"):
        ResidualMLP().build(SIZES, EBT().needs)
    with pytest.raises(ValueError, match="a backbone that gives a chunk, and Energy gives an energy"):
        Energy(Energy()).build(SIZES, EBT().needs)
    with pytest.raises(ValueError, match="gives a chunk, and Energy gives an energy"):
        Energy().build(SIZES, Flow().needs)
    context = Context(torch.zeros(1, 1, 3), torch.zeros(1, 3))
    net = ResidualMLP(16, 1, 8).build(SIZES, Flow().needs)
    with pytest.raises(ValueError, match="learned an energy, and Flow learns none"):
        sample(net, Flow(), DDIM(), context, (1, 4, 2), 2, 0, [LowestEnergy(2)])
    for make in (
        lambda: EBT(steps=0),
        lambda: EBT(momentum=1.0),
        lambda: EnergyDescent(momentum=1.0),
        lambda: EnergyDescent(rate=0.0),
    ):
        with pytest.raises(ValueError, match="step|momentum"):
            make()
    with pytest.raises(ValueError, match="at least 1 step"):
        EBT().path(0)
