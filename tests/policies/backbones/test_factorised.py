"""A base that sees what can be relied on, and a residual that sees all (FDP)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from contracts.data import FEATURES
from contracts.recipes import small

from ulna.datasets.features import ACTION, ENVIRONMENT, STATE
from ulna.datasets.stats import vector_stats
from ulna.policies.encoders.apart import Apart
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.recipes.all import RECIPES


def policy(**changes: object) -> Policy:
    torch.manual_seed(0)
    recipe = override(small("fdp"), {"conditions": ["Words"], **changes})
    rng = np.random.default_rng(0)
    stats = {k: vector_stats(rng.normal(size=(20, *f.shape))) for k, f in FEATURES.items()}
    return Policy(recipe, FEATURES, stats)


def seen(second: float, first: float = 0.3) -> dict[str, Any]:
    return {
        STATE: torch.full((2, 2, 3), first),
        ENVIRONMENT: torch.full((2, 2, 2), second),
        "task": ["go", "stay"],
    }


def test_it_begins_as_its_base_which_never_sees_the_rest() -> None:
    of = policy().eval()
    net: Any = of.net
    x, tau = torch.randn(2, 16, 3), torch.full((2,), 0.5)
    with torch.no_grad():
        one, other = (net(x, tau, tau, of.encode(seen(v))) for v in (0.1, 0.9))
        assert torch.equal(one, other), "the zero layers are at zero"
        assert torch.equal(one, net.base(x, tau, tau, _first(of, seen(0.1))))
        assert not torch.equal(one, net(x, tau, tau, of.encode(seen(0.1, first=0.5))))
        assert not torch.equal(one[0], net(x, tau, tau, of.encode({**seen(0.1), "task": ["stay", ""]}))[0])
        for layer in net.zero:
            layer.weight.normal_()
        one, other = (net(x, tau, tau, of.encode(seen(v))) for v in (0.1, 0.9))
        assert not torch.equal(one, other)
        net.scale = 0.0
        assert torch.equal(net(x, tau, tau, of.encode(seen(0.9))), net.base(x, tau, tau, _first(of, seen(0))))


def test_the_base_never_sees_the_rest_by_a_memory() -> None:
    """Not even by one that is as wide as a token."""
    of = policy(context="Recurrent", **{"context.memory": 32}).eval()
    net: Any = of.net
    x, tau = torch.randn(2, 16, 3), torch.full((2,), 0.5)
    with torch.no_grad():
        one, other = (net.base(x, tau, tau, _first(of, seen(v))) for v in (0.1, 0.9))
        assert torch.equal(one, other)
        assert not torch.equal(one, net.base(x, tau, tau, _first(of, seen(0.1, first=0.5))))
    with pytest.raises(ValueError, match="use --context Stack"):
        policy(context="ICRT")


def _first(of: Policy, observation: dict[str, Any]) -> Any:
    from dataclasses import replace

    context = of.encode(observation)
    return replace(context, pooled=context.pooled[:, of.net.first])  # type: ignore[index]


def test_the_base_learns_from_its_own_error_alone() -> None:
    """Its gradients are those that it would have without the residual."""
    of = policy()
    net: Any = of.net
    batch = {**seen(0.4), ACTION: torch.rand(2, 16, 3), "mask": torch.ones(2, 16, dtype=torch.bool)}
    for layer in net.zero:  # as if it had learned
        torch.nn.init.normal_(layer.weight, std=0.1)

    def gradients(weight_of_whole: float) -> dict[str, torch.Tensor]:
        whole = net._whole
        net._whole = lambda *a, **k: whole(*a, **k) * weight_of_whole
        of.zero_grad()
        torch.manual_seed(1)
        of.loss(batch).backward()
        net._whole = whole
        return {n: p.grad.clone() for n, p in of.named_parameters() if p.grad is not None}

    much, little = gradients(1.0), gradients(0.5)
    base = [n for n in much if n.startswith(("net.base.", "encoder.groups.0", "encoder.project.0"))]
    assert len(base) > 10
    assert all(torch.equal(much[n], little[n]) for n in base)
    assert any(not torch.equal(much[n], little[n]) for n in much if n.startswith("net.residual."))
    assert much["encoder.groups.1.state.0.weight"].abs().max() > 0


def test_what_is_dropped_is_replaced_in_training_only() -> None:
    part = Apart((ENVIRONMENT,), width=8, drop=1.0)
    net = part.build({k: f for k, f in FEATURES.items() if k != ACTION})
    a, b = seen(0.1), seen(0.1, first=0.9)
    assert torch.equal(net(a), net(b))
    net.eval()
    assert torch.equal(net(a)[:, :, 0], net(b)[:, :, 0])
    assert not torch.equal(net(a)[:, :, 1], net(b)[:, :, 1])
    with pytest.raises(ValueError, match=r"--encoder\.first names some of them and not all"):
        Apart((STATE, ENVIRONMENT)).build(FEATURES)
    with pytest.raises(ValueError, match="two tokens of each step, as the encoder Apart"):
        policy(encoder="Encoder")
    assert RECIPES["fdp"](FEATURES).encoder.first == (STATE,)  # type: ignore[attr-defined]
