"""The layers of GR00T's diffusion transformer (Bjorck et al. 2025, arXiv 2503.14734; Peebles and Xie 2023,
arXiv 2212.09748). Names of weights are those of the published checkpoints.

Legend: B batch, L queries, S keys, H heads, E width of a head, D width."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import bias_of


class DiTBlock(nn.Module):
    """Attention, to its own tokens or to others, and two dense layers. source: width of the others; None:
    there are none. time: width of what its first norm is told; None: nothing."""

    def __init__(
        self,
        width: int,
        heads: int,
        head_dim: int,
        dropout: float,
        source: int | None = None,
        time: int | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = AdaptiveLayerNorm(width, time) if time else nn.LayerNorm(width)
        self.attn1 = Attention(width, heads, head_dim, source or width)
        self.norm3 = nn.LayerNorm(width, elementwise_affine=not time)
        self.ff = FeedForward(width, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x_BLD: Tensor,
        others_BSD: Tensor | None = None,
        time: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """time: `(B, 1 or L, D)`. seen: `(B, 1, S)` bool, which keys there are; None: all."""
        normed = self.norm1(x_BLD) if time is None else self.norm1(x_BLD, time)
        x = x_BLD + self.dropout(self.attn1(normed, normed if others_BSD is None else others_BSD, seen))
        return x + self.dropout(self.ff(self.norm3(x)))


class AdaptiveLayerNorm(nn.Module):
    """Layer normalisation, scaled and shifted by what is told `(B, 1 or L, time)`."""

    def __init__(self, width: int, time: int) -> None:
        super().__init__()
        self.linear = nn.Linear(time, 2 * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.linear(F.silu(time)).chunk(2, dim=-1)
        return self.norm(x) * (1 + scale) + shift


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, head_dim: int, source: int) -> None:
        super().__init__()
        self.heads, inner = heads, heads * head_dim
        self.to_q, self.to_k, self.to_v = (nn.Linear(n, inner) for n in (width, source, source))
        self.to_out = nn.ModuleList([nn.Linear(inner, width)])

    def forward(self, x_BLD: Tensor, others_BSD: Tensor, seen: Tensor | None) -> Tensor:
        q, k, v = (
            layer(of).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, of in ((self.to_q, x_BLD), (self.to_k, others_BSD), (self.to_v, others_BSD))
        )
        bias = None if seen is None else bias_of(seen, q.dtype)
        return self.to_out[0](
            F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
        )


class FeedForward(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        hidden = nn.ModuleDict({"proj": nn.Linear(width, 4 * width)})
        self.net = nn.ModuleList([hidden, nn.Dropout(dropout), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.net[0]["proj"](x), approximate="tanh")  # type: ignore[index]
        return self.net[2](self.net[1](hidden))
