"""A small transformer beside a language model: action tokens attend to the model's keys and values and to
each other (pi0, Black et al. 2024, arXiv 2410.24164; SmolVLA, Shukor et al. 2025, arXiv 2506.01844).

Legend: B batch, H horizon, A action dimensions, L tokens of the expert, S of the prefix, G heads of keys and
values, E width of a head, D width."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters.layers import (
    AdaptiveNorm,
    Block,
    RMSNorm,
    attend,
    bias_of,
    frequencies,
    normalised,
    rotated,
    turns,
)
from ..contexts.context import Context, Layers
from .backbone import Head, Sizes, require_head


@dataclass(frozen=True)
class ActionExpert:
    """As many layers as the language model, with heads like its own. It gives the velocity from noise to
    data, for the objective `Flow`. Where the context brings a state (`CachedPrefix.state` apart), its token
    comes before the actions and does not see them."""

    width: int = 1024
    """Of a token; even."""
    ffn: int = 4096
    """Hidden units of a layer."""
    attention: Literal["joint", "interleaved"] = "joint"
    """joint: in every layer actions attend to the prefix and to all actions. interleaved: in every other
    layer only to the prefix, through projections of its keys and values, and in the others to the actions
    before them, too, as SmolVLA."""
    time: Literal["token", "norm"] = "token"
    """How the level of noise is told: mixed into every action's token, or as the condition of the norms, as
    in pi0.5."""

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        require_head(self, head, Head("chunk", token_times=True))
        if sizes.layers is None:
            raise ValueError(
                "ActionExpert attends to the keys and values of a language model: use --encoder "
                "VisionLanguage --context CachedPrefix"
            )
        if self.width % 2:
            raise ValueError(f"ActionExpert width {self.width} must be even")
        return ActionExpertNet(self, sizes, sizes.layers)


@dataclass(frozen=True)
class _Prefix:
    """What does not change over the steps of a sampler. keys_values: of each layer, `(B, G, S, E)`, where it
    crosses through its own projections. bias: of prefix and own tokens, and of the prefix alone. after,
    alone: how the expert's tokens are turned, as those after the prefix, and from 0 on."""

    length: int
    keys_values: list[tuple[Tensor, Tensor]]
    bias: Tensor
    bias_alone: Tensor
    after: tuple[Tensor, Tensor]
    alone: tuple[Tensor, Tensor]


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
        self.of_heads: Tensor
        self.register_buffer("of_heads", frequencies(of.head_dim), persistent=False)
        self._last: tuple[weakref.ref[Tensor], weakref.ref[Tensor] | None, _Prefix] | None = None

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
        actions = x_BHA.shape[1]
        prefix = self.prefix(context, tokens.shape[1], actions)
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, Block)
            normed, gate = normalised(layer.input_layernorm, tokens, condition)
            queries = layer.self_attn.queries(normed)
            keys, values = prefix.keys_values[i]
            if self.crosses(i):
                attended = attend(rotated(queries, prefix.alone), keys, values, prefix.bias_alone)
            else:
                own_keys, own_values = layer.self_attn.keys_values(normed)
                k = torch.cat([keys, rotated(own_keys, prefix.after)], dim=2)
                v = torch.cat([values, own_values], dim=2)
                attended = attend(rotated(queries, prefix.after), k, v, prefix.bias)
            tokens = layer.after(tokens, attended, gate, condition)
        out, _ = normalised(self.norm, tokens[:, -actions:], condition)
        # the published ones give the velocity from data to noise
        return -self.action_out_proj(out)

    def prefix(self, context: Context, length: int, actions: int) -> _Prefix:
        """What the expert attends to beside its own tokens; kept for the next step of the sampler, which asks
        with the same tensors."""
        tokens, mask = context.tokens, context.mask
        keep = not torch.is_grad_enabled()
        if keep and (last := self._last) is not None and last[0]() is tokens and last[2].length == length:
            masks_alike = mask is None if last[1] is None else last[1]() is mask
            if masks_alike:
                return last[2]
        prefix = self._prefix(context, length, actions)
        if keep:
            self._last = weakref.ref(tokens), None if mask is None else weakref.ref(mask), prefix
        return prefix

    def _prefix(self, context: Context, length: int, actions: int) -> _Prefix:
        device, dtype = context.tokens.device, context.tokens.dtype
        valid = context.mask
        if valid is None:
            valid = torch.ones(context.tokens.shape[:2], dtype=torch.bool, device=device)
        seen = valid[:, None].expand(-1, length, -1)
        own = self.sees(length, actions, device).expand(len(valid), -1, -1)
        bias = bias_of(torch.cat([seen, own], dim=2), dtype)
        places = torch.arange(length, device=device)[None]
        keys_values = []
        for i, (layer, (keys, values)) in enumerate(
            zip(self.layers, self.of.of(context.tokens), strict=True)
        ):
            if self.crosses(i):
                assert isinstance(layer, Block)
                shape = keys.shape[2:]
                keys = layer.self_attn.k_proj(keys.flatten(2)).unflatten(-1, shape)
                values = layer.self_attn.v_proj(values.flatten(2)).unflatten(-1, shape)
            keys_values.append((keys.transpose(1, 2), values.transpose(1, 2)))
        return _Prefix(
            length,
            keys_values,
            bias,
            bias[..., : seen.shape[2]],
            turns(valid.sum(1, keepdim=True) + places, self.of_heads),
            turns(places, self.of_heads),
        )

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
