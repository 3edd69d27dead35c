"""ACT's transformer (Zhao et al. 2023, arXiv 2304.13705): an encoder over what was observed, and a decoder
whose queries are the actions of the chunk.

Legend: B batch, H horizon, A action dimensions, S context tokens, D width."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..contexts.context import Context
from .backbone import Head, Sizes, require_head
from .post_norm import DecoderLayer, EncoderLayer, require_width, sines_of, xavier
from .time import TimeEmbedding


@dataclass(frozen=True)
class EncoderDecoder:
    """Tokens of a picture have two-dimensional sines of their place at every layer, and each token a learned
    position besides, which those of a picture do not have in ACT. One more token tells the time, which is
    always the same where there is no noise. With `bare` it is ACT's to the letter."""

    width: int = 512
    """Of a token; a multiple of 4 and of heads."""
    encoder_depth: int = 4
    """Number of layers over the observation."""
    depth: int = 1
    """Number of layers over the actions. ACT asks for 7; its released code uses what the first one gives."""
    heads: int = 8
    """Of the attention, in each layer."""
    ffn: int = 3200
    """Width of a layer's hidden units."""
    dropout: float = 0.1
    """Share of units that training switches off, 0 to 1, in the attention and in the feed-forward layers."""
    bare: bool = False
    """No token tells the time, and tokens of a picture have no learned position: as in ACT's own code, and
    LeRobot's, whose weights `ulna train --start` can begin with."""

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        require_head(self, head, Head("chunk", 2, forward_mode=True, second_order=True))
        require_width(self, self.width, self.heads)
        return EncoderDecoderNet(self, sizes, head)


class EncoderDecoderNet(nn.Module):
    def __init__(self, c: EncoderDecoder, sizes: Sizes, head: Head) -> None:
        super().__init__()
        self.time = None if c.bare else TimeEmbedding(c.width, head.times == 2)
        self.tokens_in = nn.Linear(sizes.token_width, c.width)
        self.actions_in = nn.Linear(sizes.action_dim, c.width, bias=not c.bare)
        self.token_positions = nn.Parameter(torch.randn(sizes.tokens + (not c.bare), c.width))
        self.queries = nn.Parameter(torch.randn(sizes.horizon, c.width))
        self.places: Tensor
        self.register_buffer("places", sines_of(sizes.places, c.width), persistent=False)
        self.placeless: Tensor
        placeless = torch.tensor([float(p is None or not c.bare) for p in sizes.places])[:, None]
        self.register_buffer("placeless", placeless, persistent=False)
        layer = c.width, c.heads, c.ffn, c.dropout
        self.encoder = nn.ModuleList(EncoderLayer(*layer) for _ in range(c.encoder_depth))
        self.decoder = nn.ModuleList(DecoderLayer(*layer) for _ in range(c.depth))
        xavier(self.encoder)
        xavier(self.decoder)
        self.norm, self.out = nn.LayerNorm(c.width), nn.Linear(c.width, sizes.action_dim)
        # the fused kernels of attention know neither forward-mode nor second-order derivatives
        self.plain_attention = head.forward_mode or head.second_order

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        tokens = self.tokens_in(context.tokens)
        positions, queries = self._positions(context), self.queries[: x_BHA.shape[1]]
        padding = None if context.mask is None else ~context.mask
        if self.time is not None:
            tokens = torch.cat([self.time(s, t)[:, None], tokens], dim=1)
            if padding is not None:
                padding = torch.cat([torch.zeros_like(padding[:, :1]), padding], dim=1)
        with sdpa_kernel(SDPBackend.MATH) if self.plain_attention else contextlib.nullcontext():
            for layer in self.encoder:
                tokens = layer(tokens, positions, padding)
            actions = self.actions_in(x_BHA)
            for layer in self.decoder:
                actions = layer(actions, queries, tokens, positions, padding)
        return self.out(self.norm(actions))

    def _positions(self, context: Context) -> Tensor:
        """`(1 + S, D)`, of the time and of the context's tokens, of which those of the steps come last;
        without a time `(S, D)`."""
        count, per_step = context.tokens.shape[1], len(self.places)
        repeats = -(-count // per_step), 1
        of_steps = self.places.repeat(repeats)[-count:]
        if context.frame is not None:
            of_steps = of_steps * (context.frame >= 0)[:, None]
        if self.time is None:
            free = self.placeless.repeat(repeats)[-count:]
            if context.frame is not None:
                free = torch.where((context.frame >= 0)[:, None], free, 1.0)
            return self.token_positions[:count] * free + of_steps
        learned = self.token_positions[: 1 + count]
        return torch.cat([learned[:1], learned[1:] + of_steps])
