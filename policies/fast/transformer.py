"""`Transformer` for few rows: the same network in the kernels of `kernels.py`.

Memory tokens do not see each other, so keys and values of the context's are made once a decision, for all
layers together; those of the time at every step. Legend: B batch, H horizon, A action dimensions, S context
tokens, D width, L layers."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ..backbones.transformer import TransformerNet
from ..contexts.context import Context
from . import kernels
from .once import Once, Times


class TransformerRows:
    """Call it as the network whose weights it reads. ValueError for one whose heads the kernels cannot
    hold."""

    def __init__(self, net: TransformerNet) -> None:
        self.net = net
        self.layers: list[Any] = list(net.decoder.layers)
        attention = self.layers[0].multihead_attn
        self.width, self.heads = attention.embed_dim, attention.num_heads
        head = self.width // self.heads
        if head < 16 or head & (head - 1) or self.width > kernels.DEEPEST:
            raise ValueError(f"{self.heads} heads of width {head} do not fit the kernels")
        others = [layer.multihead_attn for layer in self.layers]
        self.weight = torch.cat([a.in_proj_weight.data[self.width :] for a in others])  # (L·2·D, D)
        self.bias = torch.cat([a.in_proj_bias.data[self.width :] for a in others])
        self.told, self.times = Once(self._told), Times(self._time)

    def __call__(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        net, d, (b, h, _) = self.net, self.width, x_BHA.shape
        of_time = self.times(s, t)
        of_tokens, seen, mask = self.told(context.tokens, context.mask, context.frame)
        x = kernels.product(
            x_BHA.reshape(b * h, -1),
            net.actions_in.weight,
            net.actions_in.bias,
            add=net.action_positions[:h],
        )
        for i, layer in enumerate(self.layers):
            own, other = layer.self_attn, layer.multihead_attn
            qkv = kernels.product(x, own.in_proj_weight, own.in_proj_bias, before=layer.norm1)
            a = kernels.attend(qkv[:, :d], qkv[:, d:], d, self.heads, h, mask=mask)
            x = kernels.product(a, own.out_proj.weight, own.out_proj.bias, add=x)
            q = kernels.product(x, other.in_proj_weight[:d], other.in_proj_bias[:d], before=layer.norm2)
            keys = slice(2 * d * i, 2 * d * (i + 1))
            a = kernels.attend(q, of_tokens[:, keys], d, self.heads, h, of_time[:, keys], seen)
            x = kernels.product(a, other.out_proj.weight, other.out_proj.bias, add=x)
            wide = kernels.product(
                x, layer.linear1.weight, layer.linear1.bias, before=layer.norm3, after="gelu"
            )
            x = kernels.product(wide, layer.linear2.weight, layer.linear2.bias, add=x)
        norm = cast(nn.LayerNorm, net.decoder.norm)
        return kernels.product(x, net.out.weight, net.out.bias, before=norm).reshape(x_BHA.shape)

    def _time(self, s: Tensor, t: Tensor) -> Tensor:
        return nn.functional.linear(self.net.memory(self.net.time(s, t)), self.weight, self.bias)

    def _told(
        self, tokens: Tensor, padding: Tensor | None, frame: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Keys and values of the tokens `(B·S, L·2·D)`; which memory each action sees, and which actions,
        uint8, None: all."""
        net, s, h = self.net, tokens.shape[1], len(self.net.action_positions)
        memory = net.memory(net.tokens_in(tokens) + net.token_positions[:s])
        keys = kernels.product(memory.flatten(0, 1), self.weight, self.bias)
        seen = mask = None
        if net.causal:
            unseen = net.unseen(h, s, Context(tokens, tokens, frame=frame))
            seen = (~unseen)[None]
            mask = torch.ones(1, h, h, dtype=torch.uint8, device=tokens.device).tril()
        if padding is not None:
            there = torch.cat([torch.ones_like(padding[:, :1]), padding], dim=1)[:, None]
            seen = there.expand(-1, h, -1) if seen is None else seen & there
        return keys, None if seen is None else seen.to(torch.uint8).contiguous(), mask
