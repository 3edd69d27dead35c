"""The context in which the words look at the pictures."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ulna.policies.contexts.context import Conditions
from ulna.policies.contexts.grounded import Grounded, GroundedNet

WIDTH, PLACES = 4, 3
ROOT = 2**0.5
SHOWN = torch.tensor(
    [[ROOT, -ROOT / 2, -ROOT / 2, 0], [-ROOT / 2, ROOT, -ROOT / 2, 0], [-ROOT / 2, -ROOT / 2, ROOT, 0]]
)
"""The things that the places show, by mean and deviation over the places."""


class Encoder(nn.Module):
    """A token of no place before those of three places."""

    places = (None, (0.5, 0.3), (0.5, 0.7), (0.5, 1.0))


def told(words: torch.Tensor) -> Conditions:
    return Conditions(words[:, None], torch.ones(len(words), 1, dtype=torch.bool), words)


def built() -> GroundedNet:
    """That finds the place which shows what the words say."""
    net = Grounded(heads=1).build(WIDTH, 1 + PLACES, 2, 1, 1)
    assert isinstance(net, GroundedNet)
    net.use(Encoder())
    with torch.no_grad():
        assert net.query is not None
        for layer, scale in ((net.query, 100.0), (net.key, 1.0), (net.value, 1.0)):
            layer.weight.copy_(scale * torch.eye(WIDTH))
            layer.bias.zero_()
        net.unasked.zero_()
        net.positions.zero_()
    return net


def test_it_finds_what_was_asked_for_wherever_it_lies() -> None:
    net, things = built(), torch.eye(WIDTH)
    state = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    first, second = things[[0, 1, 2]], things[[2, 0, 1]]  # what the three places show at both steps
    z = torch.stack([torch.cat([state[:1], first]), torch.cat([state[1:], second])])[None]
    context = net(z.expand(2, -1, -1, -1), told(things[[1, 2]]))
    assert context.tokens.shape == (2, net.tokens, WIDTH)
    assert context.pooled.shape == (2, net.pooled_width)
    for row, asked in enumerate((1, 2)):
        found = SHOWN[asked]
        expected = torch.stack([things[asked], state[0], found, state[1], found])
        assert torch.allclose(context.tokens[row], expected, atol=1e-4)
    assert torch.equal(context.tokens.flatten(1), context.pooled)
    with torch.no_grad():
        net.positions.copy_(torch.arange(PLACES)[:, None].expand(-1, WIDTH))
    moved = net(z, told(things[[1]])).tokens[0]
    assert torch.allclose((moved - context.tokens[0])[2], torch.full((WIDTH,), 1.0))
    assert torch.allclose((moved - context.tokens[0])[4], torch.full((WIDTH,), 2.0)), "it tells where"


def test_without_conditions_it_looks_as_it_has_learned_and_without_pictures_not_at_all() -> None:
    net = Grounded().build(WIDTH, 1 + PLACES, 1, 0, 0)
    net.use(Encoder())
    assert net(torch.randn(2, 1, 1 + PLACES, WIDTH)).tokens.shape == (2, 2, WIDTH)
    blind = nn.Module()
    blind.places = (None, None)  # type: ignore[assignment]
    net = Grounded().build(WIDTH, 2, 1, 1, 1)
    net.use(blind)
    z = torch.randn(2, 1, 2, WIDTH)
    assert torch.equal(net(z, told(torch.ones(2, WIDTH))).tokens[:, 1:], z[:, 0])
    with pytest.raises(ValueError, match="--encoder FeatureMaps"):
        Grounded().build(WIDTH, 1, 1, 1, 1).use(nn.Module())
    with pytest.raises(ValueError, match=r"--context\.heads"):
        Grounded(heads=3).build(WIDTH, 1, 1, 1, 1)
