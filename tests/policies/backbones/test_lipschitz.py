"""A network with a bound keeps it, and learns what fits in it, and nothing steeper."""

from __future__ import annotations

import pytest
import torch

from ulna.policies.backbones.backbone import Head, Sizes
from ulna.policies.backbones.lipschitz import BoundedLinear, LipschitzMLP
from ulna.policies.contexts.context import Context

SIZES = Sizes(action_dim=2, horizon=3, token_width=4, pooled_width=4)


Fitted = tuple[torch.nn.Module, float]


def fitted(bound: float) -> Fitted:
    """A network that was shown a steep step over the first element of its context; and its squared error."""
    torch.manual_seed(0)
    net = LipschitzMLP(bound=bound, width=32, depth=1, time_width=8).build(SIZES, Head())
    optimizer = torch.optim.Adam(net.parameters(), 2e-2)
    error = torch.zeros(())
    for _ in range(200):
        c = torch.rand(64, 4) * 2 - 1
        error = ((ask(net, torch.zeros(64, 6), c)[:, 0] - torch.tanh(20 * c[:, 0])) ** 2).mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    return net, float(error.detach())


def ask(net: torch.nn.Module, x_BN: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
    """`(B, H * A)` of a flat chunk and a pooled context."""
    tau = torch.full((len(x_BN),), 0.3)
    return net(x_BN.unflatten(1, (3, 2)), tau, tau, Context(pooled[:, None], pooled)).flatten(1)


@pytest.fixture(scope="module")
def step() -> dict[float, Fitted]:
    return {bound: fitted(bound) for bound in (0.5, 40.0)}


@torch.no_grad()
def norm(layer: BoundedLinear) -> float:
    return float(torch.linalg.matrix_norm(layer.bounded(), 2))


@pytest.mark.parametrize("shape", [(8, 64), (64, 8), (32, 32)])
def test_a_layer_keeps_its_bound_whatever_its_weights(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    for size in (1e-3, 1.0, 1e3):
        layer = BoundedLinear(*shape, bound=2.0)
        torch.nn.init.normal_(layer.weight, std=size)
        assert norm(layer) <= 2.0 + 1e-4
    torch.nn.init.orthogonal_(layer.weight)
    assert norm(layer) == pytest.approx(2.0, rel=1e-3)


def test_jacobians_of_a_fitted_network_stay_under_the_bound(step: dict[float, Fitted]) -> None:
    """And the larger of them go far: the bound does not hold by saying nothing."""
    for bound, (net, _) in step.items():
        worst = 0.0
        for near in torch.linspace(-0.2, 0.2, 20):
            given = torch.zeros(1, 10)
            given[0, 6] = near
            jacobian = torch.autograd.functional.jacobian(lambda v, n=net: ask(n, v[:, :6], v[:, 6:]), given)
            assert isinstance(jacobian, torch.Tensor)
            worst = max(worst, float(torch.linalg.matrix_norm(jacobian[0, :, 0], 2)))
        assert 0.1 * bound < worst <= bound


def test_what_is_steeper_than_the_bound_is_not_learned(step: dict[float, Fitted]) -> None:
    """The control: a step, which must fail at a small bound, and does not at a large one."""
    assert step[40.0][1] < 0.2
    assert step[0.5][1] > 0.4
