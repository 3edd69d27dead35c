"""A small transformer beside a language model: action tokens attend to the model's keys and values and to each
other (pi0, Black et al. 2024, arXiv 2410.24164; SmolVLA, Shukor et al. 2025, arXiv 2506.01844).

Legend: B batch, H horizon, A action dimensions, L tokens of the expert, S of the prefix, G heads of keys and
values, E width of a head, D width."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters.layers import AdaptiveNorm, Block, RMSNorm, attend, bias_of, normalised, rotated, turns
from ..contexts.context import Context, Layers
from .backbone import Head, Sizes, require_head


@dataclass(frozen=True)
class ActionExpert:
    """As many layers as the language model, with heads like its own. It gives the velocity from noise to data,
    for the objective `Flow`. Where the context brings a state (`CachedPrefix.state` apart), its token comes
    before the actions and does not see them."""

    width: int = 1024
    """Of a token; even."""
    ffn: int = 4096
    """Hidden units of a layer."""
    attention: Literal["joint", "interleaved"] = "joint"
    """joint: in every layer actions attend to the prefix and to all actions. interleaved: in every other layer
    only to the prefix, through projections of its keys and values, and in the others to the actions before them,
    too, as SmolVLA."""
    time: Literal["token", "norm"] = "token"
    """How the level of noise is told: mixed into every action's token, or as the condition of the norms, as in
    pi0.5."""

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        require_head(self, head, Head("chunk", token_times=True))
        if sizes.layers is None:
            raise ValueError(
                "ActionExpert attends to the keys and values of a language model: use --encoder VisionLanguage "
                "--context CachedPrefix"
            )
        if self.width % 2:
            raise ValueError(f"ActionExpert width {self.width} must be even")
        return ActionExpertNet(self, sizes, sizes.layers)


class ActionExpertNet(nn.Module):
    def __init__(self, c: ActionExpert, sizes: Sizes, of: Layers) -> None:
        super().__init__()
        self.part, self.of = c, of
        self.action_in_proj = nn.Linear(sizes.action_dim, c.width)
        self.action_out_proj = nn.Linear(c.width, sizes.action_dim)
        self.state_proj = nn.Linear(sizes.pooled_width, c.width) if sizes.pooled_width else None
        self.adaptive = c.time == "norm"
        self.time_in = nn.Linear(c.width if self.adaptive else 2 * c.width, c.width)
        self.time_out = nn.Linear(c.width, c.width)
        self.layers = nn.ModuleList(self._block(i) for i in range(of.depth))
        self.norm = (AdaptiveNorm if self.adaptive else RMSNorm)(c.width, of.family)
        self.frequencies: Tensor
        periods = 4e-3 * (4.0 / 4e-3) ** torch.linspace(0.0, 1.0, c.width // 2, dtype=torch.float64)
        # as float64, as published: the fastest turns 250 times
        self.register_buffer("frequencies", 1.0 / periods * 2 * math.pi, persistent=False)

    def crosses(self, i: int) -> bool:
        """Whether layer i attends to the prefix only."""
        return self.part.attention == "interleaved" and i % 2 == 1

    def _block(self, i: int) -> Block:
        c, of = self.part, self.of
        source = of.kv_heads * of.head_dim if self.crosses(i) else None
        return Block(
            *(c.width, c.ffn, of.heads, of.kv_heads, of.head_dim, of.family),
            adaptive=self.adaptive,
            source=source,
        )

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        """t: `(B,)`, or `(B, H)`, a time for each action."""
        tokens, condition = self.tokens(x_BHA, t, context)
        length, actions = tokens.shape[1], x_BHA.shape[1]
        valid = context.mask
        if valid is None:
            valid = torch.ones(context.tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        prefix = valid[:, None].expand(-1, length, -1)
        own_seen = self.sees(length, actions, tokens.device).expand(len(tokens), -1, -1)
        bias = bias_of(torch.cat([prefix, own_seen], dim=2), tokens.dtype)
        own = torch.arange(length, device=tokens.device)[None]
        by = turns(valid.sum(1, keepdim=True) + own, self.of.head_dim)
        interleaved = self.part.attention == "interleaved"
        cross_by = turns(own, self.of.head_dim) if interleaved else by
        cross_bias = bias[..., : prefix.shape[2]]
        for i, (layer, (keys, values)) in enumerate(zip(self.layers, self.of.of(context.tokens), strict=True)):
            assert isinstance(layer, Block)
            normed, gate = normalised(layer.input_layernorm, tokens, condition)
            queries = layer.self_attn.queries(normed)
            if self.crosses(i):
                k = layer.self_attn.k_proj(keys.flatten(2)).unflatten(-1, keys.shape[2:])
                v = layer.self_attn.v_proj(values.flatten(2)).unflatten(-1, values.shape[2:])
                attended = attend(rotated(queries, cross_by), k, v, cross_bias)
            else:
                own_keys, own_values = layer.self_attn.keys_values(normed)
                k = torch.cat([keys, rotated(own_keys, by)], dim=1)
                v = torch.cat([values, own_values], dim=1)
                attended = attend(rotated(queries, by), k, v, bias)
            tokens = layer.after(tokens, attended, gate, condition)
        out, _ = normalised(self.norm, tokens[:, -actions:], condition)
        # the published ones give the velocity from data to noise
        return -self.action_out_proj(out)

    def tokens(self, x_BHA: Tensor, t: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        """(`(B, L, D)`, the condition of the norms `(B, 1 or H, D)` or None)."""
        actions = self.action_in_proj(x_BHA)
        # their time runs from 1 at noise to 0
        phase = (1 - t.to(self.frequencies.dtype))[..., None] * self.frequencies
        time = torch.cat([phase.sin(), phase.cos()], dim=-1).to(actions.dtype)
        time = time if time.ndim == 3 else time[:, None]
        condition = None
        if self.adaptive:
            condition = F.silu(self.time_out(F.silu(self.time_in(time))))
        else:
            both = torch.cat([actions, time.expand(-1, actions.shape[1], -1)], dim=-1)
            actions = self.time_out(F.silu(self.time_in(both)))
        if self.state_proj is None:
            return actions, condition
        state = self.state_proj(context.pooled)[:, None]
        if condition is not None and condition.shape[1] > 1:
            condition = torch.cat([condition[:, :1], condition], dim=1)
        return torch.cat([state, actions], dim=1), condition

    def sees(self, length: int, actions: int, device: torch.device) -> Tensor:
        """`(1, L, L)` bool, which of the expert's own tokens each of them attends to."""
        if self.part.attention == "interleaved":
            return torch.ones(1, length, length, dtype=torch.bool, device=device).tril()
        block = (torch.arange(length, device=device) >= length - actions).int()
        return (block[None, :] <= block[:, None])[None]
