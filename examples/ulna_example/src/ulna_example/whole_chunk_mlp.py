"""A backbone: one MLP over the whole chunk. Legend: B batch, H horizon, A action dimensions, G context."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ulna.policies.backbones.backbone import Head, Sizes, require_head
from ulna.policies.contexts.context import Context


@dataclass(frozen=True)
class WholeChunkMLP:
    """Keeps the protocol `ulna.policies.backbones.backbone.Backbone`."""

    width: int = 128
    """Of each hidden layer."""
    depth: int = 2
    """Number of hidden layers, at least 1."""

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        require_head(self, head, Head("chunk", forward_mode=True, second_order=True))
        return _Net(self, sizes.action_dim * sizes.horizon, sizes.pooled_width)


class _Net(nn.Module):
    def __init__(self, part: WholeChunkMLP, chunk: int, pooled_width: int) -> None:
        super().__init__()
        widths = [chunk + 1 + pooled_width, *[part.width] * part.depth]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.Mish()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], chunk))

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        inputs = torch.cat([x_BHA.flatten(1), t[:, None], context.pooled], dim=-1)
        return self.layers(inputs).reshape(x_BHA.shape)
