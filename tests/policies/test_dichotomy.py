"""A latent of the future from which luck is kept out (Dichotomy of Control)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ulna.datasets.features import ACTION, STATE, Feature, Features
from ulna.policies.conditions.condition import RETURN
from ulna.policies.conditions.dichotomy import Dichotomy

FEATURES: Features = {STATE: Feature((2,), "float32"), ACTION: Feature((1,), "float32")}


def built(**fields: Any) -> Any:
    torch.manual_seed(0)
    return Dichotomy(ahead=2, latent=3, hidden=16, **fields).build(FEATURES, torch.nn.Identity(), 8)


def batch(rows: int = 6) -> dict[str, Any]:
    """Its returns deviate by less than 1."""
    rng = torch.Generator().manual_seed(1)
    return {
        STATE: torch.randn(rows, 1, 2, generator=rng),
        f"next.{STATE}": torch.randn(rows, 1, 2, generator=rng),
        ACTION: torch.randn(rows, 2, 1, generator=rng),
        "mask": torch.ones(rows, 2, dtype=torch.bool),
        RETURN: torch.randn(rows, 1, generator=rng),
    }


def test_the_latent_learns_against_the_critic_and_the_critic_against_it() -> None:
    """What the critic descends, the latent ascends: the same gradient with the other sign."""
    net, of = built(luck=4.0), batch()
    seen = net._seen(of)

    def gradients(z: torch.Tensor, turned: bool) -> tuple[torch.Tensor, torch.Tensor]:
        net.zero_grad()
        z = z.detach().requires_grad_()
        if turned:
            net._told_of_luck(seen, z, of).backward()
        else:
            asks = net.critic(torch.cat([seen, net._done(of), z], dim=-1))
            logits = asks @ net.critic_of_outcome(net._outcome(of)).T / 16**0.5
            torch.nn.functional.cross_entropy(logits, torch.arange(6)).backward()
        assert z.grad is not None
        return z.grad, net.critic[0].weight.grad.clone()

    z = net._drawn(seen, of)[0]
    (of_latent, of_critic), (plain, plain_critic) = gradients(z, True), gradients(z, False)
    assert plain.abs().max() > 1e-5
    torch.testing.assert_close(of_latent, -plain)
    torch.testing.assert_close(of_critic, plain_critic)
    assert "luck" not in built(luck=0.0).losses(of)


def test_divergence_value_and_the_best_draw() -> None:
    net, of = built(kl=0.5, luck=1.0), batch()
    seen = net._seen(of)
    torch.manual_seed(2)
    losses = net.losses(of)
    torch.manual_seed(2)
    z, mean, log_deviation = net._drawn(seen, of)
    prior_mean, prior_log = net.prior(seen).chunk(2, dim=-1)
    kl = kl_divergence(Normal(mean, log_deviation.exp()), Normal(prior_mean, prior_log.exp())).sum(-1).mean()
    torch.testing.assert_close(losses["kl"], 0.5 * kl)
    error = (net.value(torch.cat([seen, z], dim=-1)) - (of[RETURN] - of[RETURN].mean())) ** 2
    torch.testing.assert_close(losses["value"], error.mean())

    class First(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[..., 2:3]  # the latent's first element is what it is worth

    net.value = First()
    with torch.no_grad():
        best = net.best(seen)
        every = prior_mean[:, None] + prior_log.exp()[:, None] * net.draws
    torch.testing.assert_close(best[:, 0], every[..., 0].max(1).values)
    net.eval()
    with torch.no_grad():
        token, mask = net({STATE: of[STATE]})
    torch.testing.assert_close(token[:, 0], net.leave(best))
    assert bool(mask.all())


def test_returns_of_large_numbers_weigh_no_more() -> None:
    """As of a reward of -1 a tick, whose returns reach down to minus the length of an episode."""
    net, of = built(), batch()
    values = []
    for size, shift in ((10.0, 0.0), (100.0, -300.0)):
        torch.manual_seed(2)
        values.append(net.losses({**of, RETURN: size * of[RETURN] + shift})["value"])
    torch.testing.assert_close(values[0], values[1], rtol=1e-2, atol=0)
    assert values[1] < 5


def test_the_outcome_is_of_the_chunk() -> None:
    net: Any = Dichotomy(ahead=3).build(FEATURES, torch.nn.Identity(), 8)
    with pytest.raises(ValueError, match=r"ahead is 3, and a chunk has 2 actions: set .*Dichotomy\.ahead 2"):
        net(batch())
