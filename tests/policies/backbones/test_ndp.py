"""Neural dynamics against the spring's closed solution, and step by step."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ulna.policies.backbones.backbone import Head, Sizes, outputs
from ulna.policies.backbones.mlp import ResidualMLP
from ulna.policies.backbones.ndp import NeuralDynamics, responses
from ulna.policies.contexts.context import Context
from ulna.policies.objectives.flow import Flow
from ulna.policies.objectives.objective import masked_mean
from ulna.policies.objectives.regression import Regression

B, H, A = 3, 16, 2
SIZES = Sizes(A, H, 8, 8)
PRESENT = torch.linspace(-0.5, 0.5, B * A).reshape(B, A)


def context(present: Tensor | None = PRESENT) -> Context:
    pooled = torch.linspace(-1, 1, B * 8).reshape(B, 8)
    return Context(pooled[:, None], pooled, present=present)


class Says(nn.Module):
    """A network that says the same rows of weights, goal and velocity whatever it is asked."""

    def __init__(self, rows_RA: Tensor) -> None:
        super().__init__()
        self.rows_RA = rows_RA

    def forward(self, x: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        return self.rows_RA.expand(len(x), -1, -1)


@dataclasses.dataclass(frozen=True)
class Saying:
    rows: tuple[tuple[float, ...], ...]

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        rows = torch.zeros(sizes.horizon, sizes.action_dim)
        rows[: len(self.rows)] = torch.tensor(self.rows)
        return Says(rows)


def ask(net: nn.Module, present: Tensor = PRESENT) -> Tensor:
    zero = torch.zeros(len(present))
    return net(torch.zeros(len(present), H, A), zero, zero, context(present))


def test_without_forcing_it_is_the_critically_damped_spring() -> None:
    # y(t) = g + (y0 - g + (v0 + alpha/2 (y0 - g)) t) exp(-alpha t / 2)
    start, velocity, goal, alpha = 0.3, -2.0, 1.0, 10.0
    t = np.arange(1, 9) / 8
    exact = goal + (start - goal + (velocity + alpha / 2 * (start - goal)) * t) * np.exp(-alpha / 2 * t)
    errors = []
    for substeps in (50, 100):
        table = responses(8, substeps, alpha, 1)
        errors.append(np.abs(table[:, :3] @ [start, velocity, goal] - exact).max())
    assert errors[1] < 0.01
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)  # Euler is of first order


def test_the_network_is_euler_step_by_step() -> None:
    basis, alpha, substeps = 4, 12.0, 3
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(basis + 2, A))
    part = NeuralDynamics(Saying(tuple(map(tuple, rows.tolist()))), basis, alpha, substeps)
    got = ask(part.build(SIZES, Head()))
    w, g, v = 100 * rows[:basis], rows[basis], np.tile(rows[basis + 1], (B, 1))
    y0 = y = PRESENT.numpy().astype(np.float64)
    dt, x, centres = 1 / (H * substeps), 1.0, np.exp(-np.arange(basis) / (basis - 1))
    for step in range(H):
        for _ in range(substeps):
            psi = np.exp(-(basis**1.5 / centres) * (x - centres) ** 2)
            force = x * (psi @ w) / psi.sum() * (g - y0)
            y, v = y + dt * v, v + dt * (alpha * (alpha / 4 * (g - y) - v) + force)
            x -= dt * x
        np.testing.assert_allclose(got[:, step].numpy(), y, atol=2e-4)


def test_it_comes_to_its_goal() -> None:
    rows = ((0.0, 0.0), (0.7, -0.4), (3.0, -3.0))  # no forcing, goal, velocity
    chunk = ask(NeuralDynamics(Saying(rows), basis=1, alpha=25.0).build(SIZES, Head()))
    torch.testing.assert_close(chunk[:, -1], torch.tensor([0.7, -0.4]).expand(B, -1), atol=0.01, rtol=0)
    assert ((chunk[:, 1] - chunk[:, -1]).abs() > 0.1).any()  # and had not been there from the start


def test_scaled_forcing_vanishes_where_the_goal_is_the_start() -> None:
    rows = ((5.0, 5.0), (0.2, -0.3), (0.0, 0.0))
    present = torch.tensor([[0.2, -0.3]] * B)
    still = ask(NeuralDynamics(Saying(rows), basis=1).build(SIZES, Head()), present)
    torch.testing.assert_close(still, present[:, None].expand(-1, H, -1))
    moving = ask(NeuralDynamics(Saying(rows), basis=1, forcing="unscaled").build(SIZES, Head()), present)
    assert (moving - present[:, None]).abs().max() > 0.1


@pytest.mark.parametrize(("alpha", "substeps"), [(64.0, 1), (128.0, 2), (256.0, 4)])
def test_what_would_diverge_is_refused(alpha: float, substeps: int) -> None:
    with pytest.raises(ValueError, match="unstable"):
        NeuralDynamics(alpha=alpha, substeps=substeps).build(SIZES, Head())


def test_the_bound_is_where_euler_diverges() -> None:
    far = [np.abs(responses(400, 1, a, 1)[-1, 0]) for a in (0.97 * 1600, 1.01 * 1600)]
    assert far[0] < 0.1 and far[1] > 10


def test_refusals_say_what_to_change() -> None:
    with pytest.raises(ValueError, match="n_past_actions to 0"):
        NeuralDynamics().build(dataclasses.replace(SIZES, n_past_actions=1), Head())
    with pytest.raises(ValueError, match="energy"):
        NeuralDynamics().build(SIZES, Head("energy"))
    net = NeuralDynamics().build(SIZES, Head())
    zero = torch.zeros(B)
    with pytest.raises(ValueError, match="of the same name"):
        net(torch.zeros(B, H, A), zero, zero, context(None))


@pytest.mark.parametrize("objective", [Regression("l2"), Flow(predict="x")])
def test_gradients_reach_every_weight_that_matters(objective: Regression | Flow) -> None:
    torch.manual_seed(0)
    net = NeuralDynamics(ResidualMLP(16, 1)).build(SIZES, objective.needs)
    target = torch.randn(B, H, A)
    losses = objective.losses(net, target, context(), objective.draw(target, 0.0, None))
    masked_mean(losses.error, torch.ones(B, H, dtype=torch.bool)).backward()
    for name, weight in net.named_parameters():
        assert weight.grad is not None and torch.isfinite(weight.grad).all(), name
        if name != "inner.enter.weight" or isinstance(objective, Flow):  # regression's input is zero
            assert weight.grad.abs().max() > 0, name


def test_it_costs_no_weights_up_to_a_basis_of_the_horizon() -> None:
    def count(part: NeuralDynamics | ResidualMLP) -> int:
        return sum(w.numel() for w in part.build(SIZES, Head()).parameters())

    inner = ResidualMLP(16, 1)
    assert count(NeuralDynamics(inner, basis=H - 2)) == count(inner) < count(NeuralDynamics(inner, basis=H))
    net = NeuralDynamics(inner).build(SIZES, Head())
    zero = torch.zeros(B)
    assert outputs(net, torch.zeros(B, H, A), zero, zero, context()).chunk.shape == (B, H, A)


def test_smooth_by_construction() -> None:
    """Whatever a network says, the chunk's third differences are far below those of the same noise raw."""
    torch.manual_seed(0)
    rows = torch.randn(H, A)
    chunk = ask(NeuralDynamics(Saying(tuple(map(tuple, rows.tolist())))).build(SIZES, Head()))
    size = chunk.std(dim=1, keepdim=True)
    jerk = (chunk / size).diff(n=3, dim=1).square().mean()
    raw = (rows / rows.std(dim=0)).diff(n=3, dim=0).square().mean()
    assert jerk < 0.2 * raw and not math.isnan(float(jerk))
