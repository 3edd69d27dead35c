"""A residual MLP over the whole chunk: on a CPU at least thirteen times as fast as the smallest transformer.
As in Much Ado About Noising (Pan et al. 2025), whose MLP reaches the success of larger nets on tasks from
state. Legend: B batch, H horizon, A action dimensions, G pooled context, D width."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..contexts.context import Context
from .backbone import Head, Sizes, require_head
from .time import TimeEmbedding


@dataclass(frozen=True)
class ResidualMLP:
    """Blocks of two linear layers, each added to what came before and scaled and shifted (FiLM, Perez et al.
    2018, arXiv 1709.07871) by the time and the pooled context."""

    width: int = 256
    """Of the hidden layers."""
    depth: int = 3
    """Number of residual blocks."""
    time_width: int = 64
    """Of the embedding of the time; even."""
    film: bool = True
    """Scale and shift every block by the time and the context; else they enter the first layer only."""
    dropout: float = 0.0
    """Share of hidden units that training switches off, 0 to 1."""

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        require_head(self, head, Head("chunk", 2, forward_mode=True, second_order=True))
        return ResidualMLPNet(self, sizes, head)


class ResidualMLPNet(nn.Module):
    def __init__(self, c: ResidualMLP, sizes: Sizes, head: Head) -> None:
        super().__init__()
        self.time = TimeEmbedding(c.time_width, head.times == 2)
        condition = c.time_width + sizes.pooled_width
        chunk = sizes.horizon * sizes.action_dim
        self.film = c.film
        self.enter = nn.Linear(chunk + (0 if c.film else condition), c.width)
        self.blocks = nn.ModuleList(
            ResidualBlock(c.width, condition if c.film else 0, c.dropout) for _ in range(c.depth)
        )
        self.out = nn.Sequential(nn.LayerNorm(c.width), nn.Linear(c.width, chunk))

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        condition = torch.cat([self.time(s, t), context.pooled], dim=-1)
        x = x_BHA.flatten(1)
        x = self.enter(x if self.film else torch.cat([x, condition], dim=-1))
        for block in self.blocks:
            x = block(x, condition)
        return self.out(x).reshape(x_BHA.shape)

    def hidden_units(self) -> list[list[tuple[str, int]]]:
        """Those within the blocks, see `policies.weights.hidden_units`; what goes from block to block keeps
        its numbers."""
        return [
            [(f"blocks.{i}.first.weight", 0), (f"blocks.{i}.first.bias", 0), (f"blocks.{i}.second.weight", 1)]
            for i in range(len(self.blocks))
        ]


class ResidualBlock(nn.Module):
    """x `(B, D)` and the condition `(B, G)` to `(B, D)`. condition: its width; 0: it is not used."""

    def __init__(self, width: int, condition: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.film = nn.Linear(condition, 2 * width) if condition else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.norm(x)
        if self.film is not None:
            scale, shift = self.film(condition).chunk(2, dim=-1)
            h = h * (1 + scale) + shift
        return x + self.second(self.dropout(nn.functional.mish(self.first(h))))
