"""The transformer of Diffusion Policy (Chi et al. 2023): action tokens attend to one time token and the
context's.

With `causal` an action sees only earlier actions and observations, as published; flow matching after pi0
turns the mask off. With x = 0 its position table is ACT's learned queries. Legend: B batch, H horizon, A
action dimensions, S context tokens, D width."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..contexts.context import Context
from .backbone import Head, Sizes, require_head
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

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        require_head(self, head, Head("chunk", 2, forward_mode=True, second_order=True))
        if self.width % self.heads or self.width % 2:
            raise ValueError(
                f"Transformer width {self.width} must be even and a multiple of heads {self.heads}"
            )
        return TransformerNet(self, sizes, head)


LEAST_CONTEXT_TOKENS = 64  # of the position table, which checkpoints from before have


class TransformerNet(nn.Module):
    masks_actions = True

    def __init__(self, c: Transformer, sizes: Sizes, head: Head) -> None:
        super().__init__()
        self.time = TimeEmbedding(c.width, head.times == 2)
        self.actions_in = nn.Linear(sizes.action_dim, c.width)
        self.tokens_in = nn.Linear(sizes.token_width, c.width)
        self.action_positions = nn.Parameter(0.02 * torch.randn(sizes.horizon, c.width))
        places = max(sizes.tokens, LEAST_CONTEXT_TOKENS)
        self.token_positions = nn.Parameter(0.02 * torch.randn(places, c.width))
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
        self.out = nn.Linear(c.width, sizes.action_dim)
        self.causal = c.causal
        # the fused kernels of attention know neither forward-mode nor second-order derivatives
        self.plain_attention = head.forward_mode or head.second_order

    def forward(
        self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context, seen_BH: Tensor | None = None
    ) -> Tensor:
        """seen_BH: bool, the actions that others attend to; None: all. Each must be able to see one."""
        actions_BHD, memory_BSD = self.embedded(x_BHA, s, t, context)
        actions_mask, memory_mask, padding = self.masks(x_BHA.shape[1], context)
        plain = sdpa_kernel(SDPBackend.MATH) if self.plain_attention else contextlib.nullcontext()
        with plain:
            decoded = self.decoder(
                actions_BHD,
                memory_BSD,
                tgt_mask=actions_mask,
                memory_mask=memory_mask,
                tgt_key_padding_mask=None if seen_BH is None else ~seen_BH,
                memory_key_padding_mask=padding,
                tgt_is_causal=False,  # else it is looked up in the mask, for which a GPU must stop
            )
        return self.out(decoded)

    def embedded(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The tokens of the actions `(B, H, D)`, and of the time and the context `(B, 1 + S, D)`."""
        tokens = self.tokens_in(context.tokens) + self.token_positions[: context.tokens.shape[1]]
        memory = self.memory(torch.cat([self.time(s, t)[:, None], tokens], dim=1))
        return self.actions_in(x_BHA) + self.action_positions[: x_BHA.shape[1]], memory

    def masks(self, h: int, context: Context) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """What is not attended to, bool: actions `(H, H)` and the context `(H, 1 + S)` by the actions, and
        tokens that are not there `(B, 1 + S)`; None where all is."""
        actions_mask = memory_mask = padding = None
        if self.causal:
            memory_mask = self.unseen(h, context.tokens.shape[1], context)
            actions_mask = torch.ones(h, h, dtype=torch.bool, device=context.tokens.device).triu(1)
        if context.mask is not None:
            padding = torch.cat([torch.zeros_like(context.mask[:, :1]), ~context.mask], dim=1)
        return actions_mask, memory_mask, padding

    def unseen(self, h: int, steps: int, context: Context) -> Tensor:
        """`(H, 1 + S)` bool: action i does not see the observations after step i; it sees the time, and
        tokens of all times."""
        device = context.tokens.device
        frame = torch.arange(steps, device=device) if context.frame is None else context.frame
        unseen = frame[None] > torch.arange(h, device=device)[:, None]
        return torch.cat([torch.zeros_like(unseen[:, :1]), unseen], dim=1)
