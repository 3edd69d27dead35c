"""A small network whose weights another makes of what the policy is told (HyperZero, Rezaei-Shoshtari et al.
2023, arXiv 2211.15457).

Legend: B batch, H horizon, A action dimensions, E embedding."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..contexts.context import Context
from .backbone import Head, Sizes, require_head
from .small_mlp import GeneratedLayer, noisy, through


@dataclass(frozen=True)
class HyperZero:
    """What the policy is told becomes an embedding, and the embedding the weights of a `SmallMLP`, which sees
    the rest: each value of a command, each task, has a network of its own, and those between are generated,
    too.

    Faithful: residual blocks that embed, one linear head for the weights and one for the biases of each
    layer, ReLU, a network for each row of a batch. Not: two hidden layers of 64, not one of 256; the
    embedding is 64 wide, not 256, and normalised; weights begin as large as an ordinary layer's; no tanh at
    the end; what is observed passes an encoder that all share. A decision generates its network anew."""

    widths: tuple[int, ...] = (64, 64)
    """Of the hidden layers of the network that is generated; at least one."""
    embedding: int = 64
    """Width of the embedding."""
    blocks: int = 2
    """Residual blocks that make it."""

    def __post_init__(self) -> None:
        if not self.widths or min(*self.widths, self.embedding) < 1 or self.blocks < 0:
            raise ValueError(
                "HyperZero's widths are one or more, each at least 1, as is its embedding, and blocks is not "
                "negative"
            )

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        require_head(self, head, Head("chunk", 2, forward_mode=True, second_order=True))
        told, seen = sizes.conditions * sizes.token_width, sizes.steps * len(sizes.places) * sizes.token_width
        if told <= 0 or sizes.pooled_width != told + seen:
            raise ValueError(
                "HyperZero makes its weights of what the policy is told, and this one is told nothing, or "
                "not through the context Stack: give it a condition (--conditions Label "
                "--conditions.Label.key observation.command) and --context Stack"
            )
        return HyperZeroNet(self, sizes, told)


class HyperZeroNet(nn.Module):
    def __init__(self, c: HyperZero, sizes: Sizes, told: int) -> None:
        super().__init__()
        self.told, chunk = told, sizes.horizon * sizes.action_dim
        self.embed = nn.Sequential(
            nn.Linear(told, c.embedding),
            *(EmbeddingBlock(c.embedding) for _ in range(c.blocks)),
            nn.LayerNorm(c.embedding, elementwise_affine=False),
        )
        self.enter = nn.Linear(chunk + 2, c.widths[0], bias=False)
        ends = [sizes.pooled_width - told, *c.widths, chunk]
        self.layers = nn.ModuleList(GeneratedLayer(c.embedding, i, o) for i, o in pairwise(ends))

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        # the pooled context is the conditions, then what was observed
        told, seen = context.pooled.split((self.told, context.pooled.shape[-1] - self.told), dim=-1)
        z = self.embed(told)
        own = self.enter(noisy(x_BHA, s, t))
        return through([layer(z) for layer in self.layers], seen, own).reshape(x_BHA.shape)


class EmbeddingBlock(nn.Module):
    """`(B, E)` to `(B, E)`, two linear layers added to what came before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, z: Tensor) -> Tensor:
        return z + self.second(torch.relu(self.first(torch.relu(z))))
