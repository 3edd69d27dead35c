"""Flow maps, against data whose flow is known exactly: N(0.4, 0.3²) in every element."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ulna.policies.backbones.backbone import Head, Sizes
from ulna.policies.backbones.mlp import ResidualMLP
from ulna.policies.contexts.context import Context
from ulna.policies.objectives.flow_map import FlowMap
from ulna.policies.objectives.objective import Draw
from ulna.policies.sampler import sample
from ulna.policies.solvers.ddim import DDIM

CENTRE, SPREAD = 0.4, 0.3
DOUBLE = torch.float64
PREDICT = pytest.mark.parametrize("predict", ["velocity", "x"])


def context(rows: int) -> Context:
    return Context(torch.zeros(rows, 1, 1, dtype=DOUBLE), torch.zeros(rows, 1, dtype=DOUBLE))


def deviation(tau: Tensor) -> Tensor:
    return (tau**2 * SPREAD**2 + (1 - tau) ** 2).sqrt()


class Exact(nn.Module):
    """The average velocity of the exact flow, as FlowMap(predict) wants it said. A little of 1, a, s and t
    can be added."""

    def __init__(self, predict: str) -> None:
        super().__init__()
        self.predict = predict
        self.more = nn.Parameter(torch.zeros(4, dtype=DOUBLE))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        s, t = s.to(DOUBLE)[:, None, None], t.to(DOUBLE)[:, None, None]
        same = t - s < 1e-6
        span = torch.where(same, torch.ones_like(t), t - s)
        jumped = t * CENTRE + deviation(t) / deviation(s) * (x - s * CENTRE)
        slope = (s * SPREAD**2 - (1 - s)) / deviation(s) ** 2
        u = torch.where(same, CENTRE + slope * (x - s * CENTRE), (jumped - x) / span)
        for weight, feature in zip(self.more, (torch.ones_like(x), x, s, t), strict=True):
            u = u + weight * feature
        return u if self.predict == "velocity" else x + (1 - s).clamp(min=0.05) * u


def batch(rows: int, objective: FlowMap, progress: float = 1.0) -> tuple[Tensor, Draw]:
    rng = torch.Generator().manual_seed(0)
    a = CENTRE + SPREAD * torch.randn(rows, 4, 2, dtype=DOUBLE, generator=rng)
    return a, objective.draw(a, progress, rng)


@PREDICT
@pytest.mark.parametrize("jumps", [1, 2, 5])
def test_any_number_of_exact_jumps_lands_where_the_flow_does(predict: str, jumps: int) -> None:
    objective = FlowMap(predict=predict)  # type: ignore[arg-type]
    sampled = sample(Exact(predict), objective, DDIM(), context(2), (2, 4, 2), jumps, 0, keep_chain=True)
    assert sampled.nfe.tolist() == [jumps, jumps]
    noise = sampled.chain[0][0].double()
    torch.testing.assert_close(sampled.chunk.double(), CENTRE + SPREAD * noise, atol=1e-6, rtol=0)


@PREDICT
def test_nothing_is_left_to_learn_for_the_exact_flow_map(predict: str) -> None:
    """With the flow's own velocity (a teacher's, as here) in place of one datum's, both terms are zero; a
    constant too much is an error of both, and of the second also where its derivative counts."""
    objective, net = FlowMap(predict=predict), Exact(predict)  # type: ignore[arg-type]
    a, draw = batch(64, objective)
    error = objective.losses(net, a, context(64), draw, teacher=Exact(predict)).error
    assert float(error.detach().abs().max()) < 1e-6
    with torch.no_grad():
        net.more[0] = 0.5
    error = objective.losses(net, a, context(64), draw, teacher=Exact(predict)).error
    torch.testing.assert_close(error.double(), torch.full_like(a, 2 * 0.5**2), atol=1e-5, rtol=0)


@PREDICT
def test_in_expectation_the_data_teach_the_same(predict: str) -> None:
    """The gradient along 1, a, s and t vanishes at the exact map, though every datum has another velocity."""
    objective, net = FlowMap(predict=predict), Exact(predict)  # type: ignore[arg-type]
    a, draw = batch(20000, objective)

    def gradient() -> Tensor:
        (g,) = torch.autograd.grad(objective.losses(net, a, context(len(a)), draw).error.mean(), net.more)
        return g

    at_optimum = gradient()
    with torch.no_grad():
        net.more.add_(0.3)
    assert float(at_optimum.norm()) < 0.03 * float(gradient().norm())


@PREDICT
def test_the_target_is_the_papers_and_carries_no_gradient(predict: str) -> None:
    """By central differences, and only u, not the target, is differentiated by the weights."""
    objective = FlowMap(predict=predict)  # type: ignore[arg-type]
    torch.manual_seed(0)
    net = ResidualMLP(width=16, depth=1).build(Sizes(2, 4, 1, 1), objective.needs).double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    a, draw = batch(5, objective)
    s, t = draw.more["s"].double(), draw.more["t"].double()
    draw = Draw(draw.noise, draw.tau.double(), {"s": s, "t": t})

    def average(at: Tensor, s: Tensor, t: Tensor) -> Tensor:
        out = net(at, s, t, context(5))
        return out if predict == "velocity" else (out - at) / (1 - s).clamp(min=0.05)[:, None, None]

    def between(tau: Tensor) -> Tensor:
        return draw.noise + tau[:, None, None] * v

    v, h = a - draw.noise, 1e-6
    change = (average(between(s + h), s + h, t) - average(between(s - h), s - h, t)) / (2 * h)
    target = v + (t - s)[:, None, None] * change.detach()
    expected = (average(between(draw.tau), draw.tau, draw.tau) - v) ** 2
    expected = expected + (average(between(s), s, t) - target) ** 2
    error = objective.losses(net, a, context(5), draw).error
    torch.testing.assert_close(error, expected, rtol=1e-5, atol=1e-6)
    weights = list(net.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(error.sum(), weights),
        torch.autograd.grad(expected.sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_intervals_grow_from_nothing_to_all_of_the_time() -> None:
    objective = FlowMap(begin=0.2, whole=0.6)
    _, early = batch(100, objective, progress=0.19)
    assert not early.more, "velocities only"
    longest = []
    for progress, share in ((0.2, 0.0), (0.3, 0.25), (0.6, 1.0), (1.0, 1.0)):
        _, draw = batch(4000, objective, progress)
        s, t = draw.more["s"], draw.more["t"]
        assert (s >= 0).all()
        assert (t <= 1).all()
        assert (s <= t).all()
        assert float((t - s).mean()) == pytest.approx(share / 3, abs=0.01)
        longest.append(float((t - s).max()))
    assert longest == sorted(longest)
    assert longest[-1] > 0.95
    for begin, whole in ((-0.1, 0.5), (0.6, 0.5), (0.5, 1.1)):
        with pytest.raises(ValueError, match="does not hold"):
            FlowMap(begin, whole)


def test_it_asks_for_two_times_and_forward_mode() -> None:
    assert FlowMap().needs == Head(times=2, forward_mode=True)
