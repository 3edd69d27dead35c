"""A chunk as a row of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from ulna.policies.backbones.backbone import Head, Sizes
from ulna.policies.backbones.pieces import Pieces, PiecesNet, equal, layers_in
from ulna.policies.backbones.transformer import Transformer
from ulna.policies.contexts.context import Context

SIZES = Sizes(7, 1, token_width=4, pooled_width=4)


@dataclass(frozen=True)
class Same:
    """Gives each token back."""

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        assert (sizes.action_dim, sizes.horizon) == (5, 3), "three tokens of width 5"
        return SameNet()


class SameNet(nn.Module):
    def forward(self, x: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        return x


def context(present: Tensor | None = None) -> Context:
    return Context(torch.zeros(2, 1, 4), torch.zeros(2, 4), present=present)


def test_each_piece_is_a_token_of_its_own() -> None:
    net = Pieces(Same(), (4, 1, 2), width=5, present=True).build(SIZES, Head())
    assert isinstance(net, PiecesNet)
    x, now = torch.randn(2, 1, 7, requires_grad=True), torch.randn(2, 7, requires_grad=True)
    out = net(x, torch.zeros(2), torch.zeros(2), context(now))
    assert out.shape == x.shape
    out[:, 0, 4].sum().backward()  # the second piece
    assert x.grad is not None
    assert now.grad is not None
    for grad in (x.grad[:, 0], now.grad):
        assert bool(grad[:, 4].all())
        assert not grad[:, :4].any()
        assert not grad[:, 5:].any()
    with pytest.raises(ValueError, match=r"the data do not say: use --backbone\.present false"):
        net(x, torch.zeros(2), torch.zeros(2), context())


def test_pieces_are_layers_or_as_long_as_each_other() -> None:
    assert equal(10, 4) == (3, 3, 2, 2)
    names = [*(f"net.a.weight:{i}" for i in range(3)), "net.a.bias:0", "net.b.weight:0"]
    assert layers_in(names) == (4, 1)
    assert layers_in(["grip", "lift"]) == (2,), "names of joints are of one layer"
    for pieces, sizes, says in (
        (Pieces(lengths=(4, 4)), SIZES, r"2 pieces of Pieces have 8 elements.*the chunk has 7"),
        (Pieces(count=8), SIZES, "--backbone.count of up to 7"),
        (Pieces(Pieces(Transformer(16, 1))), SIZES, "not another Pieces"),
        (Pieces(count=2, present=True), Sizes(3, 2, 4, 4), "--horizon 1"),
    ):
        with pytest.raises(ValueError, match=says):
            pieces.build(sizes, Head())
