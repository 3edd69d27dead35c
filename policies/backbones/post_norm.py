"""Transformer layers as ACT has them (after DETR, Carion et al. 2020, arXiv 2005.12872): normalised after
each sum, and positions are added to queries and keys of every layer, not to what is passed on.

Legend: B batch, N tokens, M tokens that are attended to, D width."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .backbone import Place


class EncoderLayer(nn.Module):
    """Tokens `(B, N, D)` attend to each other. positions: `(N, D)` or `(B, N, D)`. padding: `(B, N)` bool,
    True where there is no token; None: nowhere."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.forth = FeedForward(width, ffn, dropout)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)

    def forward(self, x_BND: Tensor, positions: Tensor, padding: Tensor | None = None) -> Tensor:
        placed = x_BND + positions
        seen, _ = self.attention(placed, placed, x_BND, key_padding_mask=padding, need_weights=False)
        return self.forth(self.norm(x_BND + self.dropout(seen)))


class DecoderLayer(nn.Module):
    """Tokens `(B, N, D)` with the positions `queries` `(N, D)` attend to each other, then to memory `(B, M,
    D)` with its positions `(M, D)` and its padding `(B, M)`."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.own = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.cross = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.forth = FeedForward(width, ffn, dropout)
        self.norms, self.dropout = nn.ModuleList(nn.LayerNorm(width) for _ in range(2)), nn.Dropout(dropout)

    def forward(
        self,
        x_BND: Tensor,
        queries: Tensor,
        memory_BMD: Tensor,
        positions: Tensor,
        padding: Tensor | None = None,
    ) -> Tensor:
        placed = x_BND + queries
        seen, _ = self.own(placed, placed, x_BND, need_weights=False)
        x_BND = self.norms[0](x_BND + self.dropout(seen))
        seen, _ = self.cross(
            x_BND + queries,
            memory_BMD + positions,
            memory_BMD,
            key_padding_mask=padding,
            need_weights=False,
        )
        return self.forth(self.norms[1](x_BND + self.dropout(seen)))


class FeedForward(nn.Module):
    def __init__(self, width: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, ffn), nn.ReLU(), nn.Dropout(dropout), nn.Linear(ffn, width), nn.Dropout(dropout)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.net(x))


def xavier(module: nn.Module) -> None:
    """Begin with the matrices that Glorot and Bengio (2010) proposed, as ACT does."""
    for weight in module.parameters():
        if weight.ndim > 1:
            nn.init.xavier_uniform_(weight)


def require_width(part: object, width: int, heads: int) -> None:
    """ValueError unless attention of so many heads, and sines in two directions, are possible."""
    if width % heads or width % 4:
        raise ValueError(f"{type(part).__name__} width {width} must be a multiple of 4 and of heads {heads}")


def sines(n: int, width: int) -> Tensor:
    """`(n, width)`: sines and cosines of the positions 0..n-1 (Vaswani et al. 2017, arXiv 1706.03762)."""
    return _sinusoids(torch.arange(n), width)


def sines_of(places: Sequence[Place | None], width: int) -> Tensor:
    """`(K, width)`: half of each is of the row, half of the column, whose period is the picture's side; 0 for
    what is of no place."""
    table = torch.zeros(len(places), width)
    placed = [i for i, place in enumerate(places) if place is not None]
    if placed:
        rows, columns = torch.tensor([p for p in places if p is not None]).T * 2 * math.pi
        table[placed] = torch.cat([_sinusoids(rows, width // 2), _sinusoids(columns, width // 2)], dim=-1)
    return table


def _sinusoids(at_n: Tensor, width: int) -> Tensor:
    phase = at_n[:, None] / 10000 ** (2 * torch.arange(width // 2) / width)
    return torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(1)
