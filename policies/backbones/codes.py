"""A network that tells chunks by codes and what is off (VQ-BeT, Lee et al. 2024, arXiv 2403.03181).

Legend: B batch, H horizon, A action dimensions, F feature width, G codebooks, C codes of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from ..contexts.context import Context
from .backbone import Backbone, Head, Sizes, require_head
from .ndp import NeuralDynamics
from .residual_vq import ResidualVQ
from .transformer import Transformer


@dataclass(frozen=True)
class Codes:
    """Of an observation the `inner` network, asked for one action of `feature` elements, gives a feature. Of
    it heads tell which code is likely in each codebook, given those before, and for each code the offset
    between the chunk that the codes stand for and the one to execute. The codes are a residual vector
    quantisation of chunks by an autoencoder of its own."""

    inner: Backbone = Transformer(width=256, depth=4, heads=8, dropout=0.1)
    """The network that is asked for the feature."""
    feature: int = 256
    """Width of the feature and of the heads' hidden units."""
    codes: int = 16
    """Of each codebook."""
    books: int = 2
    """Codebooks, each for what those before leave."""
    code_width: int = 64
    """Of what a code stands for."""
    hidden: int = 128
    """Width of the autoencoder's two hidden layers."""

    def __post_init__(self) -> None:
        if self.codes < 2 or self.books < 1:
            raise ValueError("a codebook has at least 2 codes, and there is at least 1 codebook")

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        require_head(self, head, Head("codes"))
        if type(self.inner) is NeuralDynamics:
            raise ValueError("Codes asks a plain network for a feature, and NeuralDynamics gives a motion")
        if sizes.horizon * sizes.action_dim < self.books:
            raise ValueError(
                f"{self.books} codebooks are more than a chunk of {sizes.horizon * sizes.action_dim} numbers "
                "has: use fewer --backbone.books"
            )
        one = replace(sizes, horizon=1, action_dim=self.feature, n_past_actions=0)
        try:
            inner = self.inner.build(one, Head())
        except ValueError as error:
            raise ValueError(f"Codes asks its inner network for one action: {error}") from None
        return CodesNet(self, inner, sizes)


class CodesNet(nn.Module):
    def __init__(self, c: Codes, inner: nn.Module, sizes: Sizes) -> None:
        super().__init__()
        self.inner, self.feature = inner, c.feature
        self.evaluations = int(getattr(inner, "evaluations", 1))
        self.shape = (c.books, c.codes, sizes.horizon, sizes.action_dim)
        self.quantiser = ResidualVQ(sizes.horizon, sizes.action_dim, c.hidden, c.code_width, c.codes, c.books)
        self.likely = nn.ModuleList(_head(c.feature, c.codes) for _ in range(c.books))
        self.given = nn.ModuleList(nn.Embedding(c.codes, c.feature) for _ in range(c.books - 1))
        self.off = _head(c.feature, c.books * c.codes * sizes.horizon * sizes.action_dim)
        nn.init.zeros_(self.off[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.off[-1].bias)  # type: ignore[arg-type]

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Coded:
        """What there is to say of B chunks; x is not used."""
        return Coded(self, x_BHA, s, t, context)


class Coded:
    """What a network of codes says of B chunks, which is computed when it is asked for."""

    def __init__(self, net: CodesNet, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> None:
        self.net, self.quantiser = net, net.quantiser
        self._question = x_BHA.new_zeros(len(x_BHA), 1, net.feature), s, t, context

    @cached_property
    def _feature(self) -> Tensor:
        """`(B, F)`."""
        return self.net.inner(*self._question)[:, 0]

    def logits(self, codes_Bg: Tensor) -> Tensor:
        """`(B, C)` float32 of the next codebook's codes, given the codes `(B, g)` of the g before it."""
        feature = self._feature
        for codes, given in zip(codes_Bg.T, self.net.given, strict=False):
            feature = feature + given(codes)
        return self.net.likely[codes_Bg.shape[1]](feature).float()

    def chunk(self, codes_BG: Tensor) -> Tensor:
        """`(B, H, A)` float32: what the codes stand for, which is not differentiated, and the offsets."""
        with torch.no_grad():
            stands_for = self.quantiser.chunk(self.quantiser.vectors(codes_BG)).float()
        off = self.net.off(self._feature).float().unflatten(1, self.net.shape)
        b, g = codes_BG.shape
        rows, books = (torch.arange(n, device=off.device) for n in (b, g))
        return stands_for + off[rows[:, None], books, codes_BG].sum(1)


def _head(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, outputs))
