"""The transformer of Diffusion Policy (Chi et al. 2023): action tokens attend to one time token and the
context's.

With `causal` an action sees only earlier actions and observations, as published; flow matching after pi0
turns the mask off. With x = 0 its position table is ACT's learned queries. Legend: B batch, H horizon, A
action dimensions, S context tokens, D width."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..contexts.context import Context
from .time import TimeEmbedding


@dataclass(frozen=True)
class Transformer:
    """Pre-LN decoder layers over the actions of the chunk."""

    width: int = 256
    """Of a token; even, and a multiple of heads."""
    depth: int = 8
    """Number of layers."""
    heads: int = 4
    """Of the attention, in each layer."""
    ffn: int = 4
    """Width of a layer's hidden units, as a multiple of width."""
    dropout: float = 0.0
    """Share of units that training switches off, 0 to 1, in the attention and in the feed-forward layers."""
    causal: bool = False
    """An action sees only earlier actions and observations."""
    two_times: bool = False
    """Tell the network two times, as flow maps need, instead of one."""

    def build(self, action_dim: int, horizon: int, token_width: int, pooled_width: int) -> nn.Module:
        if self.width % self.heads or self.width % 2:
            raise ValueError(
                f"Transformer width {self.width} must be even and a multiple of heads {self.heads}"
            )
        return TransformerNet(self, action_dim, horizon, token_width)


MAX_CONTEXT_TOKENS = 64


class TransformerNet(nn.Module):
    def __init__(self, c: Transformer, action_dim: int, horizon: int, token_width: int) -> None:
        super().__init__()
        self.time = TimeEmbedding(c.width, c.two_times)
        self.actions_in = nn.Linear(action_dim, c.width)
        self.tokens_in = nn.Linear(token_width, c.width)
        self.action_positions = nn.Parameter(0.02 * torch.randn(horizon, c.width))
        self.token_positions = nn.Parameter(0.02 * torch.randn(MAX_CONTEXT_TOKENS, c.width))
        self.memory = nn.Sequential(
            nn.Linear(c.width, 4 * c.width), nn.Mish(), nn.Linear(4 * c.width, c.width)
        )
        layer = nn.TransformerDecoderLayer(
            c.width,
            c.heads,
            c.ffn * c.width,
            c.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.decoder = nn.TransformerDecoder(layer, c.depth, nn.LayerNorm(c.width))
        self.out = nn.Linear(c.width, action_dim)
        self.causal = c.causal

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        steps = context.tokens.shape[1]
        tokens = self.tokens_in(context.tokens) + self.token_positions[:steps]
        memory_BSD = self.memory(torch.cat([self.time(s, t)[:, None], tokens], dim=1))
        actions_BHD = self.actions_in(x_BHA) + self.action_positions[: x_BHA.shape[1]]
        actions_mask = memory_mask = None
        if self.causal:
            ahead = torch.ones(x_BHA.shape[1], steps + 1, dtype=torch.bool, device=x_BHA.device)
            memory_mask = ahead.triu(2)  # time token, then observation j for action i >= j
            actions_mask = torch.ones(
                x_BHA.shape[1], x_BHA.shape[1], dtype=torch.bool, device=x_BHA.device
            ).triu(1)
        return self.out(self.decoder(actions_BHD, memory_BSD, tgt_mask=actions_mask, memory_mask=memory_mask))
