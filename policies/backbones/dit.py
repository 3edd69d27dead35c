"""GR00T's diffusion transformer for actions (Bjorck et al. 2025, arXiv 2503.14734). Names of weights are
those of the published checkpoints.

Legend: B batch, H horizon, A action dimensions, L tokens of the transformer, D their width, S tokens that it
crosses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters.dit import DiTBlock
from ..contexts.context import Context
from .backbone import Head, Sizes, require_head

TIMES = 256  # sinusoids of the level of noise
LEVELS = 1000  # that the network tells apart


@dataclass(frozen=True)
class DiT:
    """A token of the state and one of each action go through layers that cross the context's tokens and
    layers in which they see each other, in turns; the level of noise scales and shifts each layer's norm. How
    state and actions become tokens, and tokens actions, each embodiment has weights of its own. It gives the
    velocity, for the objective `Flow`."""

    depth: int = 16
    """Layers, the first crosses."""
    heads: int = 32
    """Of the attention, in each layer."""
    head_dim: int = 48
    """Width of a head; a token has heads times as much."""
    width: int = 1024
    """Of what the last layer gives, and of the hidden units that read states and give actions."""
    embodiments: int = 32
    """Kinds of robots that the weights have room for."""
    embodiment: int = 0
    """Which of them this robot is, 0 to embodiments - 1; a training changes no other's weights but by weight
    decay."""
    dropout: float = 0.2
    """Share of activations that it does without while training."""
    state_dropout: float = 0.0
    """Share of the training rows whose state is not told."""

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        require_head(self, head, Head("chunk", token_times=True))
        if sizes.layers is not None:
            raise ValueError(
                "DiT crosses tokens, and this context has keys and values: use --context ReadTokens "
                "--encoder.language.gives tokens"
            )
        if not 0 <= self.embodiment < self.embodiments:
            raise ValueError(
                f"DiT's embodiment is {self.embodiment}: it has room for 0 to {self.embodiments - 1} "
                "(--backbone.embodiments)"
            )
        if self.heads * self.head_dim % 2:
            raise ValueError(f"DiT's heads {self.heads} times head_dim {self.head_dim} must be even")
        return DiTNet(self, sizes)


class DiTNet(nn.Module):
    def __init__(self, c: DiT, sizes: Sizes) -> None:
        super().__init__()
        self.part, d = c, c.heads * c.head_dim
        self.state_encoder = (
            ByEmbodimentMLP(c.embodiments, sizes.pooled_width, c.width, d) if sizes.pooled_width else None
        )
        self.action_encoder = ActionEncoder(c.embodiments, sizes.action_dim, d)
        self.position_embedding = nn.Embedding(sizes.horizon, d)
        nn.init.normal_(self.position_embedding.weight, std=0.02)
        self.model = Layers(c, sizes.token_width)
        self.action_decoder = ByEmbodimentMLP(c.embodiments, c.width, c.width, sizes.action_dim)

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        """t: `(B,)`, or `(B, H)`, a time for each action."""
        h, of = x_BHA.shape[1], self.part.embodiment
        level = (t * LEVELS).floor()
        level = level if level.ndim == 2 else level[:, None]
        tokens = self.action_encoder(x_BHA, level.expand(-1, h), of) + self.position_embedding.weight[:h]
        if self.state_encoder is not None:
            state = self.state_encoder(context.pooled, of)[:, None]
            if self.training and self.part.state_dropout:
                told = torch.rand(len(state), 1, 1, device=state.device) >= self.part.state_dropout
                state = state * told
            tokens = torch.cat([state, tokens], dim=1)
            if level.shape[1] > 1:
                level = torch.cat([level[:, :1], level], dim=1)
        out = self.model(tokens, context.tokens, level, context.mask)
        return self.action_decoder(out[:, -h:], of)


class Layers(nn.Module):
    """The transformer itself. crossed: width of the tokens that it crosses."""

    def __init__(self, c: DiT, crossed: int) -> None:
        super().__init__()
        d = c.heads * c.head_dim
        self.timestep_encoder = nn.ModuleDict(
            {
                "timestep_embedder": nn.ModuleDict(
                    {"linear_1": nn.Linear(TIMES, d), "linear_2": nn.Linear(d, d)}
                )
            }
        )
        self.transformer_blocks = nn.ModuleList(
            DiTBlock(d, c.heads, c.head_dim, c.dropout, crossed if i % 2 == 0 else None, d)
            for i in range(c.depth)
        )
        self.norm_out = nn.LayerNorm(d, eps=1e-6, elementwise_affine=False)
        self.proj_out_1, self.proj_out_2 = nn.Linear(d, 2 * d), nn.Linear(d, c.width)

    def forward(self, x_BLD: Tensor, others_BSD: Tensor, level: Tensor, mask: Tensor | None) -> Tensor:
        """level: `(B, 1 or L)`, of 0 to 999."""
        embedder = self.timestep_encoder["timestep_embedder"]
        sines = sinusoids(level, TIMES, cosines_first=True, one_less=True).to(x_BLD.dtype)
        time = embedder["linear_2"](F.silu(embedder["linear_1"](sines)))  # type: ignore[index]
        seen = None if mask is None else mask[:, None]
        x = x_BLD
        for i, block in enumerate(self.transformer_blocks):
            x = block(x, others_BSD, time, seen) if i % 2 == 0 else block(x, time=time)
        shift, scale = self.proj_out_1(F.silu(time)).chunk(2, dim=-1)
        return self.proj_out_2(self.norm_out(x) * (1 + scale) + shift)


class ByEmbodiment(nn.Module):
    """A linear layer with weights for each embodiment."""

    def __init__(self, embodiments: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.W = nn.Parameter(inputs**-0.5 * torch.randn(embodiments, inputs, outputs))
        self.b = nn.Parameter(torch.zeros(embodiments, outputs))

    def forward(self, x: Tensor, of: int) -> Tensor:
        return F.linear(x, self.W[of].T, self.b[of])


class ByEmbodimentMLP(nn.Module):
    def __init__(self, embodiments: int, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.layer1 = ByEmbodiment(embodiments, inputs, hidden)
        self.layer2 = ByEmbodiment(embodiments, hidden, outputs)

    def forward(self, x: Tensor, of: int) -> Tensor:
        return self.layer2(F.relu(self.layer1(x, of)), of)


class ActionEncoder(nn.Module):
    """Noisy actions and their levels to tokens."""

    def __init__(self, embodiments: int, inputs: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.W1 = ByEmbodiment(embodiments, inputs, width)
        self.W2 = ByEmbodiment(embodiments, 2 * width, width)
        self.W3 = ByEmbodiment(embodiments, width, width)

    def forward(self, x_BHA: Tensor, level_BH: Tensor, of: int) -> Tensor:
        tokens = self.W1(x_BHA, of)
        time = sinusoids(level_BH, self.width).to(tokens.dtype)
        return self.W3(F.silu(self.W2(torch.cat([tokens, time], dim=-1), of)), of)


def sinusoids(level: Tensor, width: int, cosines_first: bool = False, one_less: bool = False) -> Tensor:
    """`(..., width)` of levels `(...)`, with frequencies from 1 down to 1/10000; one_less: the last reaches
    it."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=level.device)
    phase = level.float()[..., None] * torch.exp(-math.log(10_000.0) * steps / (half - one_less))
    pair = (phase.cos(), phase.sin()) if cosines_first else (phase.sin(), phase.cos())
    return torch.cat(pair, dim=-1)
