"""Self-evolving gated attention: a memory of a fixed number of tokens that the observations are read into and
read with (SeedPolicy, Gui et al. 2026, arXiv 2603.05117).

Legend: B batch, T = n_obs_steps, K tokens of a frame, O = T·K observed tokens, N tokens of the memory,
D width."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from .context import Conditions, Context, ContextNet, carried
from .stack import stacked


@dataclass(frozen=True)
class SEGA:
    """Two streams of blocks, each of self-attention, attention to the other stream and an MLP: the memory
    looks at the observations, and the observations, which are the context then, look at the memory. How much
    each token of the memory changes is a gate without weights: the sigmoid of how well it matched what was
    observed, over all blocks, heads and observed tokens. Each decision adds to the tokens, so that they grow
    over an episode, and what is new counts less: it is for episodes of some hundred decisions. Conditions are
    not remembered, since they may change."""

    tokens: int = 60
    """Of the memory, each as wide as the encodings."""
    depth: int = 6
    """Blocks of each stream."""
    heads: int = 8
    """Of every attention."""
    gate: bool = True
    """Keep what the gate does not open for; else every decision writes the memory anew."""
    chain: int = 40
    """Decisions in a row that a training sees; the memory is empty at the first."""
    begin: Literal["anywhere", "episode"] = "episode"
    """Where a chain begins: at any tick, or where its episode does, as the memory will when the policy acts.
    What lies beyond a chain that is shorter than the episode is not learned then."""
    backprop: int = 4
    """Decisions that a gradient goes back through along the memory. With 1, as in the code that was
    released, nothing teaches the gate, nor the last block what to write; 0: all of the chain."""

    def build(
        self, width: int, tokens_per_frame: int, n_obs_steps: int, conditions: int, condition_tokens: int
    ) -> ContextNet:
        if self.tokens < 1 or self.depth < 1:
            raise ValueError(f"SEGA needs at least 1 token and 1 block, not {self.tokens} and {self.depth}")
        if self.heads < 1 or width % self.heads:
            raise ValueError(
                f"SEGA's heads {self.heads} must divide the width of the encodings {width}: set "
                "--context.heads or the encoder's width"
            )
        return SEGANet(self, width, tokens_per_frame * n_obs_steps, conditions, condition_tokens)


class SEGANet(ContextNet):
    def __init__(self, part: SEGA, width: int, seen: int, conditions: int, condition_tokens: int) -> None:
        super().__init__()
        self.part = part
        self.token_width, self.memory_width = width, part.tokens * width
        self.tokens, self.pooled_width = seen + condition_tokens, width * (seen + conditions)
        self.backprop = part.backprop
        self.first = nn.Parameter(0.02 * torch.randn(part.tokens, width))
        self.place = nn.Parameter(0.02 * torch.randn(part.tokens, width))
        self.memory_blocks = nn.ModuleList(Block(width, part.heads) for _ in range(part.depth))
        self.seen_blocks = nn.ModuleList(Block(width, part.heads) for _ in range(part.depth))

    def forward(
        self,
        z_BTKD: Tensor,
        conditions: Conditions | None = None,
        memory: Tensor | None = None,
        fresh: Tensor | None = None,
    ) -> Context:
        b, width = len(z_BTKD), self.token_width
        flat, empty = carried(memory, fresh, self.first.flatten().expand(b, -1))
        before = flat.unflatten(1, (-1, width))
        seen, held, matches = z_BTKD.flatten(1, 2), before + self.place, []
        for of_memory, of_seen in zip(self.memory_blocks, self.seen_blocks, strict=True):
            # each looks at the other as it was before this block
            (held, match), (seen, _) = of_memory(held, seen), of_seen(seen, held)
            matches.append(match)
        now = held - self.place
        if self.part.gate:
            open_B_N_1 = torch.sigmoid(torch.stack(matches).mean(0))[..., None]
            now = torch.where(empty[:, None, None], now, open_B_N_1 * now + (1 - open_B_N_1) * before)
        context = stacked(seen.unflatten(1, z_BTKD.shape[1:3]), conditions)
        return replace(context, memory=now.flatten(1))


class Block(nn.Module):
    """x `(B, n, D)` and the other stream `(B, m, D)` to x, and how well each of its tokens matched the other
    stream's `(B, n)`: the mean of the attention's scores before their softmax."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.own, self.across = Attention(width, heads), Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        own, across, of_other, before_mlp = self.norms
        y = own(x)
        x = x + self.own(y, y)[0]
        read, match = self.across(across(x), of_other(other))
        x = x + read
        return x + self.mlp(before_mlp(x)), match


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.out = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )

    def forward(self, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """(what x `(B, n, D)` reads of the other `(B, m, D)`, the mean score of each of its tokens
        `(B, n)`)."""
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in (self.q(x), *self.kv(other).chunk(2, dim=-1))
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)), scores.mean((1, 3))
